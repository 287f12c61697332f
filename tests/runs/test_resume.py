"""Runs killed at any step and gone on with: the same bits as one that was left alone, and no step taken twice."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn import evals, files, losses, methods
from jaxunlearn.accounting import SampledGaussian
from jaxunlearn.cli import main
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.data import Encoded, batches
from jaxunlearn.evals.stop import parse_rule
from jaxunlearn.operators import to_dense
from jaxunlearn.runs import alternatives, kept
from jaxunlearn.runs import fit_private as private_module
from jaxunlearn.runs.checkpoint import Checkpoints, UnreadableError
from jaxunlearn.runs.evaluate import remembered
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.fit_private import fit_private
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.progress import Stage
from jaxunlearn.runs.record import digest
from jaxunlearn.runs.references import Stored, store
from jaxunlearn.runs.settings import Devices, Evaluate
from jaxunlearn.runs.streamed_newton import streamed_newton
from jaxunlearn.runs.watch import Watch
from jaxunlearn.runs.work import Work
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG, MINRES
from jaxunlearn.types import Model

BIGRAM = Model(logits=lambda table, tokens: table[tokens])


def table(mesh=None):
    w = 0.5 * jax.random.normal(jax.random.key(0), (16, 16))
    return w if mesh is None else jax.device_put(w, NamedSharding(mesh, PartitionSpec("fsdp")))


def texts(count, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 16, n).astype(np.int32) for n in rng.integers(4, 15, count)]
    return [Encoded(row, np.r_[0.0, np.ones(len(row) - 1)], np.zeros((len(row), 2)), "", None) for row in rows]


GONE, KEPT = texts(6, 1), texts(23, 2)


class CrashError(Exception):
    """In place of the power failure."""


def crash(at):
    """A callback that ends the process, as it were, in step `at`, before that step is saved."""
    seen = []

    def advance(*args, **facts):
        seen.append(args[0] if args else 1)
        if sum(seen) >= at:
            raise CrashError

    return advance


def killed(run, folder, *steps, every=2):
    """`run(checkpoints, advance)`, killed in each of the steps in turn and then left alone; and what that life saw."""
    for step in steps:
        with pytest.raises(CrashError), Checkpoints(folder, every=every) as checkpoints:
            run(checkpoints, crash(step))
    seen = []
    with Checkpoints(folder, every=every) as checkpoints:
        return run(checkpoints, lambda *args, **facts: seen.append(args or facts)), seen


def same(a, b):
    a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, t) for t in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def train(checkpoints=None, advance=None, mesh=None):
    return fit(
        BIGRAM, table(mesh), KEPT, epochs=3, batch_size=4, learning_rate=1e-2, warmup=3, stop_at_loss=0.0, mesh=mesh,
        checkpoints=checkpoints, advance=advance,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [(1,), (7, 12), (10, 10, 17), (18,)], ids=str)
def test_training_killed_at_any_step_ends_in_the_same_bits(steps, tmp_path):
    """Six steps an epoch: kills before the first checkpoint, inside an epoch, twice at one place, in the last step."""
    alone = train()
    again, seen = killed(train, tmp_path, *steps)
    same(again, alone)
    last = (steps[-1] - 1) // 2 * 2
    assert len([facts for facts in seen if not isinstance(facts, tuple)]) == 18 - last
    assert seen[0] == ((last,) if last else {})


@pytest.mark.parametrize(("first", "then"), [(8, 1), (1, 8)])
def test_training_goes_on_with_another_number_of_devices(first, then, tmp_path):
    mesh = {1: None, 8: make_mesh(fsdp=8)}
    with pytest.raises(CrashError), Checkpoints(tmp_path, every=2) as checkpoints:
        train(checkpoints, crash(9), mesh[first])
    with Checkpoints(tmp_path, every=2) as checkpoints:
        done = train(checkpoints, None, mesh[then])
    assert len(done.params.sharding.device_set) == then
    np.testing.assert_allclose(done.params, train().params, atol=1e-5)
    np.testing.assert_allclose(done.losses, train().losses, rtol=1e-5)


METHOD = methods.gauss_newton_ascent(cg_steps=3, max_kl=1e-2)


@pytest.fixture(scope="module")
def stored():
    return store(METHOD, BIGRAM, table(), GONE, KEPT, prompts=None, top_k=8)


@jax.jit
def _mean_loss(w, batch):
    total, count = losses.nll(BIGRAM, w, batch)
    return total / count


def unlearn(stored, watched, checkpoints=None, advance=None):
    everything = next(batches(GONE, len(GONE), shuffle=False)).batch
    # Best in the middle of the run: nearest to a loss that the ascent goes through.
    measure = lambda w: {"forget_nll": {"agg_value": abs(float(_mean_loss(w, everything)) - watched)}}
    watch = None if watched is None else Watch(1, measure, goals=[parse_rule("forget_nll<=0")])
    done = forget(
        METHOD, BIGRAM, table(), GONE, KEPT, stored, steps=7, batch_size=3, retain_size=8, watch=watch,
        checkpoints=checkpoints, advance=advance,
    )  # fmt: skip
    return done, watch


def test_unlearning_killed_at_any_step_ends_in_the_same_bits(stored, tmp_path):
    alone, _ = unlearn(stored, None)
    (again, _), seen = killed(partial(unlearn, stored, None), tmp_path, 1, 3, 6)
    same(again.state, alone.state)
    same(again.info, alone.info)
    assert again[2:] == alone[2:]
    assert [facts for facts in seen if isinstance(facts, dict)] == alone.history[4:]


def test_the_best_look_and_its_parameters_survive(stored, tmp_path):
    losses_seen = [step["forget_nll"] for step in unlearn(stored, None)[0].history]
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

    return table(), _optimizer(1e-2, 0.0, 7, 8).init(table())


SETS = [[one.batch for one in batches(part, 4, shuffle=False)] for part in (GONE, KEPT)]


def newton(solver, damping=1e-2, mesh=None, checkpoints=None, advance=None, retain=SETS[1]):
    return streamed_newton(
        BIGRAM, table(mesh), SETS[0], retain, curvature=GaussNewton(), solver=solver, damping=damping,
        checkpoints=checkpoints, advance=advance,
    )  # fmt: skip


@pytest.mark.parametrize("solver", [CG(12, rtol=1e-7, progress=None), MINRES(12, rtol=1e-7)])
def test_a_streamed_newton_step_killed_inside_its_solve_is_the_same(solver, tmp_path):
    alone, info = newton(solver)
    passes = []

    def retain():
        passes.append(1)
        return iter(SETS[1])

    run = lambda checkpoints, advance: newton(solver, checkpoints=checkpoints, advance=advance, retain=retain)
    (again, info_again), _ = killed(run, tmp_path, 1, 3, 3, 5, every=1)
    same(again, alone)
    same(info_again, info)
    # Every product once, but for the four that were never saved.
    assert len(passes) == int(info.steps) + 4


def test_a_streamed_newton_step_solves_its_system():
    everything = [next(batches(part, len(part), shuffle=False)).batch for part in (GONE, KEPT)]
    new, _ = newton(CG(200, rtol=1e-6, progress=None))
    w = np.asarray(table(), np.float64)
    with jax.enable_x64(True):
        A = np.asarray(to_dense(GaussNewton()(BIGRAM, jnp.asarray(w), everything[1]))) + 1e-2 * np.eye(256)
        g = np.asarray(jax.grad(lambda w: _mean_loss(w, everything[0]))(jnp.asarray(w))).ravel()
    expected = np.linalg.solve(A, g)
    # A condition of 2 in the damped system, f32 parameters of order 1.
    np.testing.assert_allclose(np.asarray(new).ravel() - w.ravel(), expected, atol=1e-5 * np.abs(expected).max())


def test_a_solve_goes_on_with_another_number_of_devices_and_refuses_another_problem(tmp_path):
    solver = CG(12, rtol=1e-7, progress=None)
    with pytest.raises(CrashError), Checkpoints(tmp_path, every=1) as checkpoints:
        newton(solver, mesh=make_mesh(fsdp=8), checkpoints=checkpoints, advance=crash(4))
    for wrong in (partial(newton, solver, 0.2), partial(newton, CG(13, rtol=1e-7, progress=None))):
        with pytest.raises(UnreadableError, match=r"damping was 0.01 and is 0.2|max_steps=12.* and is .*max_steps=13"):
            wrong(checkpoints=Checkpoints(tmp_path))
    one, _ = newton(solver, checkpoints=Checkpoints(tmp_path))
    np.testing.assert_allclose(one, newton(solver)[0], atol=1e-5)


@pytest.fixture
def alone(monkeypatch):
    """As on a machine with one device."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


def argv(world, out, *more):
    found = ["finetune", "--model", world.model, "--data", world.forget, "--out", str(out), "--epochs", "8"]
    return [*found, "--batch-size", "3", "--learning-rate", "1e-2", *more]


@pytest.fixture(scope="module")
def left_alone(world, tmp_path_factory):
    """A fine-tuning that nothing happened to, on one device."""
    out = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        assert main(argv(world, out)) == 0
    assert not out.with_name("out.partial").exists()
    return out


def test_from_the_command_line_a_preempted_run_goes_on(world, left_alone, alone, tmp_path, monkeypatch, capsys):
    out, partial_ = tmp_path / "out", tmp_path / "out.partial"
    real, calls = Stage.advance, []

    def advance(stage, *args, **facts):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(stage, *args, **facts)

    monkeypatch.setattr(Stage, "advance", advance)
    assert main(argv(world, out)) == 75
    told = capsys.readouterr().err
    assert "interrupted after step 3, saved up to step 3; to go on: jaxunlearn finetune --config" in told
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert main(argv(world, out)) == 2
    assert "holds an unfinished run of this output; go on with --resume, or delete it" in capsys.readouterr().err
    assert main(argv(world, out, "--resume", "--seed", "1", "--max-length", "60")) == 2
    told = capsys.readouterr().err
    assert "--seed was 0 and is 1" in told
    assert "--max-length was None and is 60" in told
    content = Path(world.forget).read_text()
    try:
        Path(world.forget).write_text(content.replace("a", "e", 1))
        assert main(argv(world, out, "--resume")) == 2
    finally:
        Path(world.forget).write_text(content)
    assert f"the contents of {world.forget} have changed" in capsys.readouterr().err
    assert main(["finetune", "--config", str(partial_ / "jaxunlearn.yaml"), "--resume"]) == 0
    assert "going on from" in capsys.readouterr().out
    assert digest(out) == digest(left_alone)
    assert not partial_.exists()
    assert main(argv(world, out, "--resume")) == 0
    assert "is complete already" in capsys.readouterr().out
    assert main(argv(world, out, "--resume", "--seed", "1")) == 2


def test_a_disk_that_fills_up_at_the_end_costs_nothing(world, left_alone, alone, tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", lambda path: full(path) if "out." in str(path) else None)
        assert main(argv(world, tmp_path / "out", "--checkpoint-every", "2")) == 74
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert main(argv(world, tmp_path / "out", "--checkpoint-every", "2", "--resume")) == 0
    assert digest(tmp_path / "out") == digest(left_alone)


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_read(world, capsys):
    """/proc takes no files, not even from root, to whom the permissions of a folder mean nothing."""
    assert main(["finetune", "--model", "nowhere", "--data", "nothing", "--out", "/proc/self/out"]) == 2
    assert "/proc/self/out cannot be written" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"needs about 1,000,000,000,000 MB and .* MB are free"):
        files.require_room("out", 10**18)


def test_a_failed_try_without_checkpoints_leaves_nothing_to_delete(world, alone, tmp_path, capsys):
    assert main(argv(world, tmp_path / "out", "--learning-rate", "1e30")) == 2
    assert "training diverged" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_evaluation_does_not_measure_a_model_twice(world, alone, tmp_path, monkeypatch, capsys):
    asked = ["evaluate", "--model", world.model, "--reference-model", world.model, "--forget", world.forget]
    assert main([*asked, "--out", str(tmp_path / "alone.json")]) == 0
    real, calls = evals.run_suites, []

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(evals, "run_suites", once)
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 130
    assert "to go on: jaxunlearn evaluate --config" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    assert main([*asked, "--out", str(tmp_path / "out.json"), "--resume"]) == 0
    assert len(calls) == 3  # of the four there would be without a memory
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "alone.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "out.json"]
    assert main([*asked, "--out", str(tmp_path / "out.json"), "--resume"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert main([*asked, "--out", str(tmp_path / "out.json")]) == 2


def test_written_answers_are_kept_call_by_call(tmp_path):
    asked = []

    def generate(model, params, prompts, *, max_new_tokens, stop_ids=(), batch_size=None):
        asked.append(prompts)
        return [[np.int32(len(prompt)), max_new_tokens] for prompt in prompts]

    work = Work("evaluate", Evaluate(Path("model"), forget="x", out=tmp_path / "out.json"))
    for column, count in (("before", 2), ("before", 2), ("after", 4)):
        write = remembered(generate, work, column)
        assert "batch_size" in inspect.signature(write).parameters
        assert write(None, None, [[1, 2], [3]], max_new_tokens=5) == [[2, 5], [1, 5]]
        assert write(None, None, [[1, 2], [3]], max_new_tokens=6) == [[2, 6], [1, 6]]
        assert len(asked) == count


@pytest.mark.slow
def test_a_process_killed_outright_goes_on(world, left_alone, tmp_path):
    out, environment = tmp_path / "out", os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    command = [sys.executable, "-m", "jaxunlearn", *argv(world, out, "--checkpoint-every", "1", "--resume")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.partial" / "checkpoints" / "4").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "going on from" in done.stdout
    assert digest(out) == digest(left_alone)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
