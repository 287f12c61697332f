"""Evaluation inside a run: looks at the right steps, rules that end it, the best parameters returned."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import methods, models
from jaxunlearn.cli import main
from jaxunlearn.evals import evaluate
from jaxunlearn.evals.stop import parse_rule
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.record import FILE
from jaxunlearn.runs.references import store
from jaxunlearn.runs.settings import Devices
from jaxunlearn.runs.watch import Watch

# Without a certificate, which takes most of the compilation and which no test here reads.
METHOD = methods.grad_diff(learning_rate=2e-3)._replace(certify=False)


@pytest.fixture(autouse=True, scope="module")
def _one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        yield


def run(encoded, watch, steps=6):
    params = jax.tree.map(jnp.copy, encoded.params)
    stored = store(METHOD, encoded.model, params, encoded.forget, encoded.retain, prompts=None, top_k=8, batch_size=4)
    return forget(
        METHOD, encoded.model, params, encoded.forget, encoded.retain, stored,
        steps=steps, batch_size=3, retain_size=6, watch=watch,
    )  # fmt: skip


def measurer(encoded, world):
    return lambda params: evaluate(
        encoded.model, params, world.tokenizer, forget=encoded.forget, retain=encoded.retain, max_length=64
    )


@pytest.fixture(scope="module")
def plain(encoded, world):
    """Six steps looked at after each, without rules."""
    watch = Watch(1, measurer(encoded, world))
    return run(encoded, watch), watch


def values(watch, name):
    return [look.result[name]["agg_value"] for look in watch.looks]


def test_without_rules_looks_change_nothing(encoded, world, plain):
    done, watch = plain
    assert [look.step for look in watch.looks] == list(range(7))
    assert (done.stopped, done.kept) == ("steps", 6)
    unwatched = run(encoded, None)
    for a, b in zip(jax.tree.leaves(done.state.params), jax.tree.leaves(unwatched.state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert done.history[2]["watched_forget_nll"] == values(watch, "forget_nll")[3]
    assert len(set(values(watch, "forget_nll"))) == 7
    every = Watch(4, measurer(encoded, world))
    run(encoded, every)
    assert [look.step for look in every.looks] == [0, 4]


def test_a_goal_ends_the_run_where_it_is_reached(encoded, world, plain):
    seen = values(plain[1], "forget_nll")
    bound = (seen[2] + seen[3]) / 2
    rising = seen[3] > seen[2]
    assert rising, "ascent raises the loss on forget, or this test shows nothing"
    watch = Watch(1, measurer(encoded, world), goals=[parse_rule(f"forget_nll>={bound}")])
    done = run(encoded, watch)
    assert (done.stopped, done.kept, len(done.history)) == ("goal", 3, 3)
    again = measurer(encoded, world)(done.state.whole())
    assert again["forget_nll"]["agg_value"] == pytest.approx(seen[3], rel=1e-6)


def test_a_broken_limit_gives_back_the_last_that_held_it(encoded, world, plain):
    seen = values(plain[1], "forget_nll")
    bound = (seen[2] + seen[3]) / 2
    watch = Watch(1, measurer(encoded, world), limits=[parse_rule(f"forget_nll<={bound}")])
    done = run(encoded, watch)
    assert (done.stopped, done.kept, len(done.history)) == ("limit", 2, 3)
    again = measurer(encoded, world)(done.state.whole())
    assert again["forget_nll"]["agg_value"] == pytest.approx(seen[2], rel=1e-6)


@pytest.mark.parametrize(
    ("goals", "limits", "message"),
    [
        (["forget_nll>=0.1"], [], "meets --stop-when before the first step"),
        ([], ["forget_nll<=0.1"], "breaks --keep-while before the first step"),
        (["forget_nll<=0.1"], [], "no look after any of 2 steps was better"),
    ],
)
def test_rules_that_leave_no_step_are_errors(encoded, world, goals, limits, message):
    watch = Watch(1, measurer(encoded, world), *([parse_rule(text) for text in rules] for rules in (goals, limits)))
    with pytest.raises(ValueError, match=message):
        run(encoded, watch, steps=2)


def argv(world, out, *more):
    made = ["unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    return [*made, "--method", "npo", "--option", "learning_rate=2e-3", "--steps", "4", "--stop-at-nll", "99", *more]


def test_from_the_command_line_the_best_checkpoint_is_saved(world, tmp_path, capsys):
    holdout = tmp_path / "holdout.jsonl"
    holdout.write_text("".join(json.dumps(row) + "\n" for row in world.rows.holdout))
    more = ["--holdout", str(holdout), "--keep-while", "retain_nll<=99", "--evaluate-every", "2"]
    more += ["--stop-when", "forget_exact_memorisation<=unseen,forget_nll>=50"]
    more += ["--retain-coreset", "gradient_match", "--retain-coreset-size", "5"]
    more += ["--forget-coreset", "k_means", "--forget-coreset-size", "2"]
    assert main(argv(world, tmp_path / "out", *more)) == 0
    shown = capsys.readouterr().out
    assert f"5 of {len(world.rows.retain)} retain records chosen by gradient_match" in shown
    assert f"2 of {len(world.rows.forget)} forget records chosen by k_means" in shown
    assert "Steps were taken on 2 of the former" in (tmp_path / "out" / "README.md").read_text()
    assert "rule: forget_exact_memorisation <= " in shown
    found = json.loads((tmp_path / "out" / FILE).read_text())
    watching = found["watching"]
    assert [look["step"] for look in watching["looks"]] == [0, 2, 4]
    assert watching["limits"] == [["retain_nll <= 99"]]
    assert watching["goals"][0][0].startswith("forget_exact_memorisation <= ")
    model, params = models.load(tmp_path / "out")
    from jaxunlearn import data

    forget_set = data.encode(data.read(world.forget), world.tokenizer, max_length=64)
    result = evaluate(model, params, world.tokenizer, forget=forget_set, max_length=64)
    kept = next(look for look in watching["looks"] if look["step"] == watching["kept"])
    assert result["forget_nll"]["agg_value"] == pytest.approx(kept["forget_nll"], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stop-when", "jang"], "compares with unseen text: give --holdout FILE"),
        (["--stop-when", "muse"], "compares with the retrained model: give --reference-result FILE"),
        (["--stop-when", "forget_nl>=3"], "did you mean forget_nll"),
        (["--keep-while", "choice_accuracy>=0.3"], "--suite choice found no data"),
        (["--forget-coreset", "random"], "--forget-coreset and --forget-coreset-size go together"),
        (["--retain-coreset", "random"], "--retain-coreset and --retain-coreset-size go together"),
        (["--evaluate-every", "-1"], "--evaluate-every -1: give a number of steps"),
        (["--keep-while", "retain_nll<=9", "--evaluate-limit", "0"], "--evaluate-limit 0"),
    ],
)
def test_bad_rules_are_told_before_any_weight_is_loaded(world, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    assert main(argv(world, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
