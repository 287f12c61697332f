"""Exposure against brute force, by theorem and by hand; canary templates and their spaces."""

import math

import numpy as np
import pytest
from scipy.stats import binom, skewnorm

from jaxunlearn.data import DataError, Fields, from_rows
from jaxunlearn.data.canaries import CanaryTemplate, canary_row
from jaxunlearn.evals.attacks.exposure import exposure, exposures_from_nll, sequence_nll

from .attack_world import SECRETS, TEMPLATE, by_hand, world


@pytest.fixture(scope="module")
def asked():
    w = world()
    return w, sequence_nll(w.model, w.knows, w.candidates), sequence_nll(w.model, w.blank, w.candidates)


def others(values, index):
    return np.delete(values, index)


def test_log_perplexity_is_the_sum_over_the_whole_text(asked):
    w, knows, _ = asked
    for index in (0, *SECRETS):
        assert knows[index] == pytest.approx(-by_hand(w.model, w.knows, w.candidates[index]).sum(), abs=1e-4)
        assert len(w.candidates[index].tokens) == np.count_nonzero(w.candidates[index].loss_mask) + 1


def test_an_inserted_canary_is_found_and_one_not_inserted_is_not(asked):
    _, knows, blank = asked
    most = math.log2(TEMPLATE.size)
    for index in SECRETS:
        [found] = exposures_from_nll(knows[[index]], others(knows, index))
        assert found.bits >= most - 1  # two were inserted, one of which comes first
        [before] = exposures_from_nll(blank[[index]], others(blank, index))
        assert before.bits < most - 2
        assert found.method == "exact"
        assert found.interval == (found.bits, found.bits)
    rest = [i for i in range(TEMPLATE.size) if i not in SECRETS]
    ranks = [exposures_from_nll(knows[[i]], others(knows, i))[0].bits for i in rest]
    assert np.mean(ranks) == pytest.approx(1 / math.log(2), abs=0.2)


def test_one_call_from_texts_equals_the_pieces(asked):
    w, knows, _ = asked
    index = SECRETS[0]
    found = exposure(w.model, w.knows, w.candidates[index], [c for i, c in enumerate(w.candidates) if i != index])
    assert found == exposures_from_nll(knows[[index]], others(knows, index))[0]


def test_exact_ranks_equal_brute_force_and_add_up_to_their_theorem():
    values = np.random.default_rng(0).integers(0, 30, 64).astype(float)  # with many ties
    bits = []
    for i, value in enumerate(values):
        [found] = exposures_from_nll(values[[i]], others(values, i))
        order = sorted(range(64), key=lambda j: values[j])
        tied = [place for place, j in enumerate(order, start=1) if values[j] == value]
        assert found.rank == pytest.approx(np.mean(tied))
        bits.append(found.bits)
    apart = np.random.default_rng(1).normal(size=64)
    bits = [exposures_from_nll(apart[[i]], others(apart, i))[0].bits for i in range(64)]
    # Without ties every rank occurs once: log2 |R| - log2(|R|!) / |R|, which tends to 1/ln 2.
    assert np.mean(bits) == pytest.approx(math.log2(64) - math.lgamma(65) / math.log(2) / 64)


def test_a_sample_agrees_with_the_exact_value_within_its_interval_and_sees_no_further():
    rng = np.random.default_rng(2)
    space = rng.normal(size=5000)
    inside = []
    for i in range(200):
        [exact] = exposures_from_nll(space[[i]], others(space, i))
        drawn = rng.choice(others(space, i), 400, replace=False)
        [found] = exposures_from_nll(space[[i]], drawn, space=5000, method="sampled")
        inside.append(found.interval[0] - 1e-9 <= exact.bits <= found.interval[1] + 1e-9)
        assert found.interval[0] - 1e-9 <= found.bits <= found.interval[1] + 1e-9
    # Clopper-Pearson covers at least 95%; fewer than 180 of 200 would happen once in a thousand.
    assert sum(inside) >= binom.ppf(1e-3, 200, 0.95)
    [first] = exposures_from_nll(np.array([-9.0]), space[:400], space=5000, method="sampled")
    assert first.bits == pytest.approx(math.log2(401))
    assert first.interval[1] == pytest.approx(math.log2(5000))
    [everything] = exposures_from_nll(space[[3]], others(space, 3), space=5000, method="sampled")
    assert everything.bits == exposures_from_nll(space[[3]], others(space, 3))[0].bits


@pytest.mark.parametrize("skew", [0.0, 3.0, -2.0])
def test_the_skew_normal_fit_agrees_with_exact_ranks_on_a_space_small_enough_to_list(skew):
    space = skewnorm.rvs(skew, loc=40, scale=6, size=4096, random_state=5)
    rng = np.random.default_rng(6)
    drawn = rng.choice(space, 1024, replace=False)
    shares = (0.02, 0.2, 0.7)
    values = np.quantile(space, shares)
    estimates = exposures_from_nll(values, drawn, space=4096, resamples=10)
    for share, value, fitted in zip(shares, values, estimates, strict=True):
        [exact] = exposures_from_nll(np.array([value]), others(space, np.argmin(np.abs(space - value))))
        # The share itself is estimated from 1024 draws: its standard error, in bits, three times.
        error = math.sqrt((1 - share) / (share * 1024)) / math.log(2)
        assert fitted.bits == pytest.approx(exact.bits, abs=3 * error + 0.02)
        assert fitted.interval[0] <= fitted.bits + 0.1
        assert fitted.method == "skew_normal"
        assert fitted.fit_p_value > 0.01


def test_no_tail_gives_more_bits_than_the_space_has():
    drawn = skewnorm.rvs(1.0, loc=40, scale=1, size=256, random_state=1)
    found = exposures_from_nll(np.array([0.0, 39.0]), drawn, space=10**6, resamples=5)
    assert found[0].bits == math.log2(10**6)
    assert found[0].rank == pytest.approx(1.0)
    assert found[1].bits < found[0].bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": 5}, "10 candidates in a space of 5"),
        ({"space": 100, "method": "exact"}, "all 99 other candidates; 10 were given"),
        ({"candidate_nll": np.full(10, np.nan)}, "not finite"),
        ({"candidate_nll": np.zeros(0), "space": 4}, "0 candidates"),
        ({"candidate_nll": np.ones(10), "space": 100}, "the same log-perplexity"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        exposures_from_nll(np.zeros(1), **({"candidate_nll": np.arange(10.0)} | arguments))


def test_a_template_lists_its_space_once():
    template = CanaryTemplate("{choice:red|green|blue} {digits:1}{hex:1}, {letters:1}.")
    assert template.size == 3 * 10 * 16 * 26
    texts = [template.fill(index) for index in range(template.size)]
    assert len(set(texts)) == template.size
    assert texts[0] == "red 00, a."
    assert texts[-1] == "blue 9f, z."
    assert texts[26] == "red 01, a."


@pytest.mark.parametrize("count", [5, 95, 200])
@pytest.mark.parametrize("digits", [2, 9])
def test_candidates_are_drawn_without_repeats_and_without_those_to_avoid(count, digits):
    template = CanaryTemplate(f"{{digits:{digits}}}")
    drawn = template.draw(count, np.random.default_rng(0), avoid=[1, 2, 3])
    assert len(drawn) == len(set(drawn)) == min(count, template.size - 3)
    assert not {1, 2, 3} & set(drawn)
    assert all(0 <= index < template.size for index in drawn)
    assert drawn == template.draw(count, np.random.default_rng(0), avoid=[1, 2, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no hole", "nothing to fill in"),
        ("{digits}", "no place to fill"),
        ("{numbers:3}", "no place to fill"),
        ("{digits:0}", "no place to fill"),
        ("{choice:a}", "no place to fill"),
        ("{choice:a|a}", "no place to fill"),
        ("{hex:16}", "2 to 2\\^62"),
    ],
)
def test_bad_templates_are_named(text, message):
    with pytest.raises(DataError, match=message):
        CanaryTemplate(text)


@pytest.mark.parametrize("fields", [Fields(), Fields(text="body"), Fields(prompt="q", completion="a")])
def test_a_canary_row_is_read_back_whole(fields):
    [record] = from_rows([canary_row("My code is 12", fields)], fields=fields)
    assert (record.prompt, record.completion) == ("", "My code is 12")
    with pytest.raises(DataError, match="fits in no chat"):
        canary_row("x", Fields(messages="chat"))
