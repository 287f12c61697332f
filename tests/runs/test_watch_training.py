"""Evaluation inside training: rules end it, the best look is kept, and a killed run goes on with the same looks."""

from functools import partial

import numpy as np
import pytest
from lives import BIGRAM, KEPT, CrashError, crash, killed, mean_loss, same, table

from jaxunlearn import losses
from jaxunlearn.accounting import SampledGaussian
from jaxunlearn.data import batches
from jaxunlearn.evals.stop import parse_rule
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.fit_private import fit_private
from jaxunlearn.runs.watch import Watch
from jaxunlearn.sharding import make_mesh

EVERYTHING = next(batches(KEPT, len(KEPT), shuffle=False)).batch


def loss(w):
    return float(mean_loss(w, EVERYTHING))


def away_from(target):
    """A metric that is least in the middle of a run: how far the loss is from one that training goes through."""
    return lambda w: {"forget_nll": {"agg_value": abs(loss(w) - target)}}


def train(watch=None, checkpoints=None, advance=None, mesh=None, **more):
    """Twelve steps, six an epoch."""
    return fit(
        BIGRAM, table(mesh), KEPT, epochs=2, batch_size=4, learning_rate=3e-2, warmup=0, mesh=mesh, watch=watch,
        checkpoints=checkpoints, advance=advance, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """The loss after each step, and the run that nobody looks at."""
    watch = Watch(1, lambda w: {"forget_nll": {"agg_value": loss(w)}})
    return train(watch), [look.result["forget_nll"]["agg_value"] for look in watch.looks]


def test_looks_change_nothing(plain):
    done, seen = plain
    unwatched = train()
    same(done.params, unwatched.params)
    assert (done.losses, done.stopped, done.kept) == (unwatched.losses, "epochs", 12)
    assert (unwatched.stopped, unwatched.kept) == ("epochs", 12)
    assert seen == sorted(seen, reverse=True), "training lowers the loss in every step, or the tests below show nothing"
    assert len(set(seen)) == 13


def test_a_goal_ends_training_in_the_middle_of_an_epoch(plain):
    seen, told, weights = plain[1], [], []
    train(Watch(1, lambda w: {"forget_nll": {"agg_value": weights.append(np.asarray(w)) or loss(w)}}))
    watch = Watch(2, lambda w: {"forget_nll": {"agg_value": loss(w)}}, [parse_rule(f"forget_nll<={seen[8]}")])
    done = train(watch, advance=lambda **facts: told.append(facts))
    assert (done.stopped, done.steps, done.kept) == ("goal", 8, 8)
    assert [look.step for look in watch.looks] == [0, 2, 4, 6, 8]
    assert loss(done.params) == seen[8]
    begun = [one.batch for one in batches(KEPT, 4, seed=0, epochs=2)][6:8]  # the second epoch as far as it went
    total, count = np.sum([losses.nll(BIGRAM, w, one) for w, one in zip(weights[6:8], begun, strict=True)], axis=0)
    assert done.losses == [plain[0].losses[0], pytest.approx(total / count, rel=1e-5)]
    assert told[-1] == {"epoch": 2, "loss": done.losses[1], "watched_forget_nll": seen[8]}
    assert told[1] == {"watched_forget_nll": seen[2]}
    assert told[2] == {}


def test_a_broken_limit_gives_back_the_last_that_held_it(plain):
    seen = plain[1]
    limit = parse_rule(f"forget_nll>={(seen[4] + seen[5]) / 2}")
    done = train(Watch(1, lambda w: {"forget_nll": {"agg_value": loss(w)}}, limits=[limit]))
    assert (done.stopped, done.steps, done.kept) == ("limit", 5, 4)
    assert loss(done.params) == seen[4]


def test_a_goal_out_of_reach_keeps_the_model_nearest_to_it(plain):
    seen = plain[1]
    done = train(Watch(1, away_from(seen[7]), [parse_rule("forget_nll<=-1")]))
    assert (done.stopped, done.steps, done.kept) == ("epochs", 12, 7)
    assert loss(done.params) == seen[7]


def test_the_wanted_loss_still_ends_training_beside_rules(plain):
    seen = plain[1]
    done = train(Watch(1, away_from(seen[3]), [parse_rule("forget_nll<=-1")]), stop_at_loss=plain[0].losses[0])
    assert (done.stopped, done.steps, done.kept) == ("loss", 6, 3)


@pytest.mark.parametrize(
    ("goals", "measure", "message"),
    [
        (["forget_nll<=9"], loss, "meets --stop-when before the first step"),
        (["forget_nll>=9"], loss, "no look after any of 12 steps was better than the model before the first one"),
        (["retain_nll<=9"], loss, r"stop rule retain_nll <= 9: it has no value here \(no value\)"),
    ],
)
def test_rules_that_leave_no_step_are_errors(goals, measure, message):
    watch = Watch(1, lambda w: {"forget_nll": {"agg_value": measure(w)}}, [parse_rule(text) for text in goals])
    with pytest.raises(ValueError, match=message):
        train(watch)


def test_a_killed_training_goes_on_with_the_same_looks_and_the_same_best(plain, tmp_path):
    """Kills before the first checkpoint, before and after the best look, and in the last step."""
    watches = []

    def run(checkpoints=None, advance=None, mesh=None):
        watches.append(Watch(1, away_from(plain[1][7]), [parse_rule("forget_nll<=-1")]))
        return train(watches[-1], checkpoints, advance, mesh)

    alone = run()
    again, _ = killed(run, tmp_path, 1, 5, 9, 12)
    same(again.params, alone.params)
    assert again[1:] == alone[1:]
    assert (alone.kept, alone.stopped) == (7, "epochs")
    assert watches[-1].looks == watches[0].looks
    assert watches[-1].record(7) == watches[0].record(7)


@pytest.mark.parametrize(("first", "then"), [(8, 8), (8, 1), (1, 8)])
def test_on_eight_devices_and_from_one_number_of_them_to_another(first, then, plain, tmp_path):
    mesh, seen = {1: None, 8: make_mesh(fsdp=8)}, plain[1]
    watch = partial(Watch, 1, away_from(seen[7]), [parse_rule("forget_nll<=-1")])
    with pytest.raises(CrashError), Checkpoints(tmp_path, every=2) as checkpoints:
        train(watch(), checkpoints, crash(9), mesh[first])
    second = watch()
    with Checkpoints(tmp_path, every=2) as checkpoints:
        done = train(second, checkpoints, None, mesh[then])
    assert (done.kept, len(second.looks)) == (7, 13)
    assert len(done.params.sharding.device_set) == then
    assert loss(done.params) == pytest.approx(seen[7], rel=1e-5)


def test_a_private_training_is_ended_by_what_others_say():
    words, mechanism = np.arange(6, dtype=np.uint32), SampledGaussian(len(KEPT), 6, len(KEPT), 8, 1.0)

    def run(watch=None):
        return fit_private(
            BIGRAM, table(), KEPT, mechanism, clip_norm=1.0, learning_rate=1e-2, microbatch=4, warmup=0, watch=watch,
            entropy=words,
        )  # fmt: skip

    watch = Watch(1, lambda w: {"forget_nll": {"agg_value": loss(w)}})
    done = run(watch)
    seen = [look.result["forget_nll"]["agg_value"] for look in watch.looks]
    same(done.params, run().params)
    assert (done.stopped, done.steps, done.kept, len(seen)) == ("epochs", 8, 8, 9)
    limits = [parse_rule(f"forget_nll>={(seen[4] + seen[5]) / 2}")]
    ended = run(Watch(1, lambda w: {"forget_nll": {"agg_value": loss(w)}}, limits=limits))
    assert (ended.stopped, ended.steps, ended.kept) == ("limit", 5, 4)
    assert loss(ended.params) == seen[4]
    assert ended.losses == [pytest.approx(seen[5], rel=1e-5)]
