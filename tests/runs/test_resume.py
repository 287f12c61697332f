"""Loops killed at any step and gone on with: the same bits as one that was left alone, and no step taken twice."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from lives import BIGRAM, GONE, KEPT, CrashError, crash, killed, mean_loss, same, table, texts

from jaxunlearn import methods
from jaxunlearn.accounting import SampledGaussian
from jaxunlearn.data import batches
from jaxunlearn.evals.stop import parse_rule
from jaxunlearn.runs import alternatives, kept
from jaxunlearn.runs import fit_private as private_module
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.fit_private import fit_private
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.references import Stored, store
from jaxunlearn.runs.watch import Watch
from jaxunlearn.sharding import collect, make_mesh, of_first, together
from jaxunlearn.unlearn import init


def train(checkpoints=None, advance=None, mesh=None):
    return fit(
        BIGRAM, table(mesh), KEPT, epochs=2, batch_size=4, learning_rate=1e-2, warmup=3, stop_at_loss=0.0, mesh=mesh,
        checkpoints=checkpoints, advance=advance,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return train()


def test_training_killed_at_any_step_ends_in_the_same_bits(trained, tmp_path):
    """Six steps an epoch: kills before the first checkpoint, inside an epoch, twice at one place, in the last step."""
    again, seen = killed(train, tmp_path, 1, 5, 9, 9, 12)
    same(again, trained)
    assert seen[0] == (10,)
    assert len(seen) == 3


@pytest.mark.parametrize(("first", "then"), [(8, 1), (1, 8)])
def test_training_goes_on_with_another_number_of_devices(first, then, trained, tmp_path):
    mesh = {1: None, 8: make_mesh(fsdp=8)}
    with pytest.raises(CrashError), Checkpoints(tmp_path, every=2) as checkpoints:
        train(checkpoints, crash(9), mesh[first])
    with Checkpoints(tmp_path, every=2) as checkpoints:
        done = train(checkpoints, None, mesh[then])
    assert len(done.params.sharding.device_set) == then
    np.testing.assert_allclose(done.params, trained.params, atol=1e-5)
    np.testing.assert_allclose(done.losses, trained.losses, rtol=1e-5)


METHOD = methods.gauss_newton_ascent(cg_steps=3, max_kl=1e-2)


@pytest.fixture(scope="module")
def stored():
    return store(METHOD, BIGRAM, table(), GONE, KEPT, prompts=None, top_k=8)


def unlearn(stored, watched, checkpoints=None, advance=None, mesh=None):
    everything = next(batches(GONE, len(GONE), shuffle=False)).batch
    # Best in the middle of the run: nearest to a loss that the ascent goes through.
    measure = lambda w: {"forget_nll": {"agg_value": abs(float(mean_loss(w, everything)) - watched)}}
    watch = None if watched is None else Watch(1, measure, goals=[parse_rule("forget_nll<=0")])
    done = forget(
        METHOD, BIGRAM, table(mesh), GONE, KEPT, stored, steps=7, batch_size=3, retain_size=8, watch=watch,
        mesh=mesh, checkpoints=checkpoints, advance=advance,
    )  # fmt: skip
    return done, watch


@pytest.fixture(scope="module")
def forgotten(stored):
    return unlearn(stored, None)[0]


def test_unlearning_killed_at_any_step_ends_in_the_same_bits(stored, forgotten, tmp_path):
    alone = forgotten
    (again, _), seen = killed(partial(unlearn, stored, None), tmp_path, 1, 3, 6)
    same(again.state, alone.state)
    same(again.info, alone.info)
    assert again[2:] == alone[2:]
    assert [facts for facts in seen if isinstance(facts, dict)] == alone.history[4:]


def test_unlearning_goes_on_on_a_mesh(stored, forgotten, tmp_path):
    """All of the state lies there from the start, as steps leave it: the record of the solve as well."""
    mesh = make_mesh(fsdp=8)
    begun = init(METHOD, BIGRAM, table(mesh), key=jax.random.key(0))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(begun))
    alone, _ = unlearn(stored, None, mesh=mesh)
    (again, _), seen = killed(partial(unlearn, stored, None, mesh=mesh), tmp_path, 4)
    assert seen[0] == (2,)
    same(again.state, alone.state)
    assert again.history == alone.history
    np.testing.assert_allclose(again.state.params, forgotten.state.params, atol=1e-5)


def test_the_best_look_and_its_parameters_survive(stored, forgotten, tmp_path):
    losses_seen = [step["forget_nll"] for step in forgotten.history]
    alone, watch = unlearn(stored, sorted(losses_seen)[3])
    assert 1 < alone.kept < 6
    (again, watch_again), _ = killed(partial(unlearn, stored, sorted(losses_seen)[3]), tmp_path, 3, 7)
    same(again.state, alone.state)
    same(again.info, alone.info)
    assert again[2:] == alone[2:]
    assert watch_again.looks == watch.looks


def test_a_run_whose_steps_are_all_taken_takes_none_again(stored, tmp_path):
    with Checkpoints(tmp_path, every=7) as checkpoints:
        alone, _ = unlearn(stored, None, checkpoints)
    with Checkpoints(tmp_path, every=7) as checkpoints:
        again, _ = unlearn(stored, None, checkpoints, crash(8))
    same(again.state, alone.state)
    assert again.history == alone.history


def test_what_the_original_model_said_comes_back_from_the_disk(tmp_path):
    method = METHOD._replace(needs=("forget_nll", "forget_top", "retain_top"))
    asked = store(method, BIGRAM, table(), GONE, KEPT, prompts=None, top_k=8)
    asked = asked._replace(covered=np.arange(6) / 7, unseen_nll=1 / 3)
    kept.write(tmp_path / "x.safetensors", asked.plain())
    again = Stored.of(kept.read(tmp_path / "x.safetensors"), asked.alternatives)
    same(again, asked)
    answers = texts(6, 3)
    kept.write(tmp_path / "y.safetensors", alternatives.plain(answers))
    for one, back in zip(answers, alternatives.encoded(kept.read(tmp_path / "y.safetensors"), GONE), strict=True):
        assert (one.tokens.tolist(), one.loss_mask.tolist()) == (back.tokens.tolist(), back.loss_mask.tolist())
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged"):
        kept.read(tmp_path / "x.safetensors")


def test_a_private_run_draws_anew_and_leaves_no_secret(tmp_path, monkeypatch):
    """Steps taken again have noise and samples of their own, the disk tells no noise, no step is missing."""
    drawn, drawer = [], np.random.default_rng(0)
    monkeypatch.setattr(
        private_module, "_entropy", lambda: drawn.append(drawer.integers(2**32, size=6, dtype=np.uint32)) or drawn[-1]
    )
    mechanism = SampledGaussian(len(KEPT), 6, len(KEPT), 8, 1.0)

    def run(checkpoints, advance):
        return fit_private(
            BIGRAM, table(), KEPT, mechanism, clip_norm=1.0, learning_rate=1e-2, microbatch=4, report_every=2,
            checkpoints=checkpoints, advance=advance,
        )  # fmt: skip

    with pytest.raises(CrashError), Checkpoints(tmp_path, every=3) as checkpoints:
        run(checkpoints, crash(5))
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    saved = Checkpoints(tmp_path).restore(lambda facts: _shapes_of_private())
    assert saved.step == 3
    assert set(saved.facts) == {"losses"}
    for words in drawn:
        assert words[:2].tobytes() not in on_disk
        assert all(str(word) not in on_disk.decode("latin1") for word in words)
    done, seen = killed(run, tmp_path, every=3)
    assert len(drawn) == 2
    assert len([facts for facts in seen if isinstance(facts, dict)]) == 5
    assert (done.steps, len(done.losses)) == (8, 4)
    assert np.isfinite(done.losses).all()


def _shapes_of_private():
    from jaxunlearn.runs.fit_private import _optimizer

    return table(), None, _optimizer(1e-2, 0.0, 7, 8).init(table())


def test_processes_decide_as_the_first_does_and_fail_together(monkeypatch):
    """Two processes, of which this is the second: what the first gives comes out of the exchange."""
    monkeypatch.setattr(collect.jax, "process_count", lambda: 2)
    monkeypatch.setattr(collect.jax, "process_index", lambda: 1)
    first, told = [], []

    def exchange(mine):
        told.append(mine)
        return np.stack([np.asarray(first.pop(0), mine.dtype), mine])

    monkeypatch.setattr(multihost_utils, "process_allgather", exchange)
    first.append(5)
    assert of_first(7) == 5
    first.append(0)
    assert together(lambda: "done") == "done"
    full = b"no space left".ljust(collect.TEXT, b"\0")
    first += [1, np.frombuffer(full, np.uint8)]
    with pytest.raises(RuntimeError, match="^process 0: no space left$"):
        together(lambda: "done")
    first += [0, np.zeros(collect.TEXT)]
    with pytest.raises(ValueError, match="mine"):
        together(partial(_raise, ValueError("mine")))
    assert told[-1].tobytes().startswith(b"mine\0")


def _raise(error):
    raise error
