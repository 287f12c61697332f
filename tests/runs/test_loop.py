"""The parts of a run in memory: training, stored references row by row, and the unlearning loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data, losses, methods, tree
from jaxunlearn.runs.fit import fit, mean_nll
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.references import store, substitute

EVERYTHING = methods.counterfactual_matching()._replace(needs=("forget_nll", "retain_top", "counterfactual_top"))


def copy(params):
    return jax.tree.map(jnp.copy, params)


@pytest.fixture(scope="module")
def fitted(encoded):
    """The tiny model after a few epochs on all records."""
    return fit(
        encoded.model, copy(encoded.params), encoded.forget + encoded.retain, epochs=8, batch_size=6, learning_rate=1e-2
    )


@pytest.fixture(scope="module")
def prompts(encoded, world):
    return substitute(encoded.forget, encoded.retain, world.tokenizer, k=3, seed=0, max_length=64)


@pytest.fixture(scope="module")
def stored(encoded, fitted, prompts):
    return store(
        EVERYTHING, encoded.model, fitted.params, encoded.forget, encoded.retain, prompts=prompts, top_k=8, batch_size=4
    )


def test_training_lowers_the_loss_of_the_same_records(encoded, fitted):
    everything = encoded.forget + encoded.retain
    assert fitted.losses[-1] < 0.7 * fitted.losses[0]
    assert fitted.steps == 8 * data.steps_per_epoch(len(everything), 6)
    assert mean_nll(encoded.model, fitted.params, everything) < mean_nll(encoded.model, encoded.params, everything)


def test_training_is_deterministic_and_follows_its_seed(encoded):
    run = lambda seed: fit(
        encoded.model, copy(encoded.params), encoded.retain, epochs=1, batch_size=6, learning_rate=1e-2, seed=seed
    )
    first, again, other = run(0), run(0), run(1)
    assert first.losses == again.losses
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first.params, again.params)), strict=True))
    assert first.losses != other.losses


def test_training_in_bfloat16_goes_the_way_of_float32_at_rates_that_it_would_round_away(encoded):
    """At 3e-5 most steps are less than half a unit in the last place; what they add up to must not be."""
    model = encoded.model
    narrow = jax.tree.map(jnp.bfloat16, encoded.params)
    run = lambda params: fit(model, params, encoded.retain, epochs=6, batch_size=6, learning_rate=3e-5).losses
    wide, found = run(tree.to_vector(narrow)), run(copy(narrow))
    assert wide[0] - wide[-1] > 3e-3
    assert found[0] - found[-1] == pytest.approx(wide[0] - wide[-1], rel=0.05)


def test_training_stops_at_the_wanted_loss(encoded):
    seen = []
    done = fit(
        encoded.model, copy(encoded.params), encoded.retain,
        epochs=5, batch_size=6, learning_rate=1e-3, stop_at_loss=100.0, advance=lambda **facts: seen.append(facts),
    )  # fmt: skip
    assert len(done.losses) == 1
    assert len(seen) == done.steps == data.steps_per_epoch(len(encoded.retain), 6)
    assert seen[-1] == {"epoch": 1, "loss": done.losses[0]}


def test_the_next_request_asks_by_the_programs_of_the_last(encoded, fitted, prompts, caplog):
    def compiled():
        caplog.clear()
        with jax.log_compiles():
            store(
                EVERYTHING, encoded.model, fitted.params, encoded.forget, encoded.retain,
                prompts=prompts, top_k=9, batch_size=4,
            )  # fmt: skip
        return [line for line in caplog.messages if "Compiling" in line]

    assert compiled()
    assert not compiled()


def test_a_step_on_packed_records_is_one_on_the_records(encoded):
    rows = data.pack(encoded.retain, 64)
    assert len(rows) < len(encoded.retain)
    alone, packed = (
        fit(encoded.model, copy(encoded.params), part, epochs=1, batch_size=len(part), learning_rate=1e-2, warmup=0)
        for part in (encoded.retain, rows)
    )
    assert packed.steps == alone.steps == 1
    assert packed.losses == pytest.approx(alone.losses, rel=1e-5)
    after = [mean_nll(encoded.model, done.params, encoded.retain) for done in (alone, packed)]
    assert after[1] == pytest.approx(after[0], rel=1e-4)
    assert after[0] < 0.98 * alone.losses[0]


def test_mean_nll_weighs_tokens_not_records(encoded):
    total = [losses.nll(encoded.model, encoded.params, data.collate([one])) for one in encoded.retain[:3]]
    expected = sum(float(nll) for nll, _ in total) / sum(float(count) for _, count in total)
    assert mean_nll(encoded.model, encoded.params, encoded.retain[:3]) == pytest.approx(expected, rel=1e-5)


def test_stored_losses_stay_with_their_records(encoded, fitted, stored):
    """Rows taken in any order carry the loss of the very record, computed here one at a time."""
    direct = [float(losses.nll(encoded.model, fitted.params, data.collate([one]))[0]) for one in encoded.forget]
    step = next(data.pair(encoded.forget, encoded.retain, 2, seed=0))
    assert step.forget_rows.tolist() != [0, 1]
    found = stored.complete(step).reference.forget_nll
    np.testing.assert_allclose(found, np.array(direct)[step.forget_rows], rtol=1e-4)
    assert len(set(np.round(direct, 3))) == len(direct)


def test_stored_retain_answers_are_the_likeliest_of_their_records(encoded, fitted, stored):
    step = next(data.pair(encoded.forget, encoded.retain, 2, retain_size=3))
    top = stored.complete(step).reference.retain_top
    for i, row in enumerate(step.retain_rows):
        one = encoded.retain[row]
        places = np.flatnonzero(one.loss_mask)
        log_p = jax.nn.log_softmax(encoded.model.logits(fitted.params, one.tokens[None])[0])
        expected, ids = jax.lax.top_k(log_p[places - 1], 8)
        np.testing.assert_allclose(top.log_probs[i][: len(places)], expected, atol=1e-4)
        np.testing.assert_array_equal(top.ids[i][: len(places), 0], ids[:, 0])
        assert top.weights[i].sum() == len(places)


def test_counterfactual_answers_are_distributions(stored):
    top = stored.forget.counterfactual_top
    mass = np.exp(top.log_probs).sum(-1)
    assert np.all(mass[top.weights > 0] <= 1 + 1e-5)
    assert np.all(mass[top.weights > 0] > 0)
    assert stored.covered.min() > 0


def by_hand(encoded, fitted, prompts, row):
    """The loss tokens of a record with their q, None where no substitute has a counterpart: softmax under each
    substitute, the two names' tokens swapped, then the mean."""
    one = encoded.forget[row]
    p = np.asarray(jax.nn.softmax(encoded.model.logits(fitted.params, prompts.tokens[row])))
    for place, target in enumerate(one.tokens[np.flatnonzero(one.loss_mask)]):
        seen = []
        for k in range(3):
            at = prompts.places[row, k, place]
            if at > 0:
                q = p[k, at - 1].copy()
                theirs = prompts.tokens[row, k, at]
                q[[target, theirs]] = q[[theirs, target]]
                seen.append(q)
        yield target, np.mean(seen, axis=0) if seen else None


def test_the_unseen_loss_is_that_of_the_forget_answers_under_their_counterfactual_ones(
    encoded, fitted, prompts, stored
):
    found = [pair for row in range(len(encoded.forget)) for pair in by_hand(encoded, fitted, prompts, row)]
    losses_by_hand = [-np.log(q[target]) for target, q in found if q is not None]
    assert len(losses_by_hand) > 0
    np.testing.assert_allclose(stored.unseen_nll, np.mean(losses_by_hand), rtol=1e-4)


def test_a_counterfactual_answer_is_the_mean_over_substitutes(encoded, fitted, prompts, stored):
    row, top = 1, stored.forget.counterfactual_top
    for place, (target, mean) in enumerate(by_hand(encoded, fitted, prompts, row)):
        assert (mean is not None) == (top.weights[row, place] > 0)
        if mean is not None:
            np.testing.assert_allclose(np.exp(top.log_probs[row, place]), mean[top.ids[row, place]], atol=1e-5)
            assert top.ids[row, place, 0] == target
            others = top.ids[row, place] != target
            assert not others.all(), "what q gives to the original answer is always stored"
            assert np.exp(top.log_probs[row, place])[others].min() >= np.sort(mean)[-8] - 1e-5


def test_counterfactual_answers_are_pushed_until_the_forgotten_ones_are_as_surprising_as_asked(
    encoded, fitted, prompts, stored
):
    def asked(**how):
        return store(
            methods.matching(), encoded.model, fitted.params, encoded.forget, encoded.retain,
            prompts=prompts, top_k=8, batch_size=4, **how,
        )  # fmt: skip

    assert stored.alpha == asked(unseen_nll=stored.unseen_nll - 0.1).alpha == 0.0
    further = asked(unseen_nll=stored.unseen_nll + 0.3)
    assert further.alpha > 0
    assert further.unseen_nll == pytest.approx(stored.unseen_nll + 0.3, abs=0.01)
    again = asked(alpha=further.alpha)
    assert again.unseen_nll == further.unseen_nll

    q, top = stored.forget.counterfactual_top, further.forget.counterfactual_top
    np.testing.assert_array_equal(q.ids, top.ids)
    row, place = 1, int(np.argmax(q.weights[1]))
    one = data.collate([encoded.forget[row]])
    own = losses.log_probs(one.predict(encoded.model, fitted.params))[0, place][q.ids[row, place]]
    gain = np.maximum(np.asarray(own) - q.log_probs[row, place], 0)
    shift = top.log_probs[row, place] - (q.log_probs[row, place] - further.alpha * gain)
    np.testing.assert_allclose(shift, shift[0], atol=1e-4)  # all but what normalises them


def test_corrupted_prompts_are_asked_only_where_the_others_give_the_answers_away(
    encoded, fitted, prompts, stored, world
):
    broken = data.corrupted(prompts, world.tokenizer, rate=0.5)

    def asked(unseen_nll, **how):
        return store(
            methods.matching(), encoded.model, fitted.params, encoded.forget, encoded.retain,
            prompts=prompts, top_k=8, batch_size=4, unseen_nll=unseen_nll, **how,
        )  # fmt: skip

    enough = asked(stored.unseen_nll - 0.1, corrupted=broken)
    assert not enough.corrupted
    np.testing.assert_array_equal(
        enough.forget.counterfactual_top.log_probs, stored.forget.counterfactual_top.log_probs
    )
    more = asked(stored.unseen_nll + 0.1, corrupted=broken)
    assert more.corrupted
    direct = store(
        methods.matching(), encoded.model, fitted.params, encoded.forget, encoded.retain,
        prompts=broken, top_k=8, batch_size=4, alpha=more.alpha,
    )  # fmt: skip
    np.testing.assert_array_equal(more.forget.counterfactual_top.log_probs, direct.forget.counterfactual_top.log_probs)
    assert not asked(stored.unseen_nll + 0.1).corrupted


def test_only_what_the_method_needs_is_stored(encoded):
    got = store(
        methods.grad_diff(), encoded.model, encoded.params, encoded.forget[:2], encoded.retain[:2], prompts=None
    )
    assert jax.tree.leaves((got.forget, got.retain)) == []
    assert got.unseen_nll is None
    assert got.covered is None


def run(encoded, fitted, stored, method, **more):
    return forget(
        method, encoded.model, copy(fitted.params), encoded.forget, encoded.retain, stored,
        **{"steps": 3, "batch_size": 2, "retain_size": 6} | more,
    )  # fmt: skip


NPO = methods.npo(learning_rate=1e-2)


def test_the_loop_runs_its_steps_and_keeps_the_certificate(encoded, fitted, stored):
    seen = []
    done = run(encoded, fitted, stored, NPO, advance=lambda **facts: seen.append(facts))
    assert (done.stopped, len(done.history), int(done.state.step)) == ("steps", 3, 3)
    assert seen == done.history
    for step in done.history:
        assert {"objective", "update_norm", "applied", "forget_nll", "retain_nll", "retain_kl"} == set(step)
        assert all(map(np.isfinite, step.values()))
        assert step["applied"] == 1
    assert done.history[-1]["retain_kl"] > 0
    assert done.products == 0


def test_an_ascent_stops_at_the_loss_of_unseen_text(encoded, fitted, stored):
    first = run(encoded, fitted, stored, NPO, steps=1).history[0]["forget_nll"]
    done = run(encoded, fitted, stored, NPO, steps=40, batch_size=3, stop_at_nll=first + 0.3)
    assert done.stopped == "unseen"
    assert len(done.history) < 40
    losses_seen = [step["forget_nll"] for step in done.history]
    assert losses_seen[-1] >= first + 0.3 > max(losses_seen[:-1])


def test_a_second_order_run_counts_its_products(encoded, fitted, stored):
    method = methods.counterfactual_matching(cg_steps=3)
    done = run(encoded, fitted, stored, method, steps=2)
    assert done.products == sum(step["products"] for step in done.history)
    assert 0 < done.products <= 6
    assert done.history[1]["objective"] < done.history[0]["objective"]
    assert done.history[-1]["retain_kl"] < 3e-3


def test_sizes_are_cut_to_the_records_there_are(encoded, fitted, stored):
    done = run(encoded, fitted, stored, NPO, steps=1, batch_size=500, retain_size=500)
    everything = run(
        encoded, fitted, stored, NPO, steps=1, batch_size=len(encoded.forget), retain_size=len(encoded.retain)
    )
    assert done.history == everything.history
