"""Every combination of what can be judged, and no success without evidence."""

import itertools

import pytest

from jaxunlearn.reports import judge


def result(**values):
    return {name: {"agg_value": value} for name, value in values.items()}


FLOOR = {"forget_kl": 2.6}
BEFORE = result(retain_exact_memorisation=1.0)


@pytest.mark.parametrize(
    ("distance", "retained", "good"),
    [(2.0, 1.0, True), (2.0, 0.5, False), (5.0, 1.0, False), (5.0, 0.5, False), (2.6, 0.99, True)],
)
def test_success_needs_both(distance, retained, good):
    verdict = judge(BEFORE, result(forget_kl=distance, retain_exact_memorisation=retained), floor=FLOOR)
    assert verdict.good is good


def test_too_little_and_too_much_forgetting_are_told_apart():
    retrained = result(forget_nll=6.4)
    little = judge(BEFORE, result(forget_kl=7.0, forget_nll=0.1), retrained, floor=FLOOR)
    much = judge(BEFORE, result(forget_kl=7.0, forget_nll=30.0), retrained, floor=FLOOR)
    assert "still finds the forgotten answers likelier" in " ".join(little.sentences)
    assert "avoids the forgotten answers more" in " ".join(much.sentences)


def test_missing_numbers_leave_the_question_open_with_the_reason():
    after = result(retain_exact_memorisation=1.0) | {"forget_kl": {"agg_value": None, "skipped": "no retrained model"}}
    verdict = judge(BEFORE, after, floor=FLOOR)
    assert verdict.good is None
    assert "Forgetting was not judged: no retrained model." in verdict.sentences
    assert judge(BEFORE, result(forget_kl=1.0, retain_exact_memorisation=1.0)).good is None
    assert judge({}, {}).headline == "Neither forgetting nor keeping could be judged."


def test_a_loss_is_a_failure_even_where_forgetting_is_open():
    assert judge(BEFORE, result(retain_exact_memorisation=0.2)).good is False


def test_every_combination_has_its_own_headline():
    headlines = {
        judge(BEFORE, result(forget_kl=distance, retain_exact_memorisation=retained), floor=FLOOR).headline
        for distance, retained in itertools.product((1.0, 5.0, None), (1.0, 0.1, None))
    }
    assert len(headlines) == 9


def test_a_recognised_forget_set_is_no_full_success():
    def measured(auc, low, high, **values):
        return result(**values) | {"forget_loss_auc": {"agg_value": auc, "interval": [low, high]}}

    values = {"forget_kl": 1.0, "retain_exact_memorisation": 1.0}
    retrained = measured(0.55, 0.45, 0.65, forget_kl=0.0)
    found = judge(BEFORE, measured(0.92, 0.85, 0.97, **values), retrained, floor=FLOOR)
    assert found.good is None
    assert "still recognises" in found.headline
    assert any("92% of the time, against 55%" in sentence for sentence in found.sentences)
    hidden = judge(BEFORE, measured(0.6, 0.5, 0.7, **values), retrained, floor=FLOOR)
    assert hidden.good is True
    assert "recognises" not in hidden.headline


def test_few_records_are_said_to_be_few():
    few = {"forget_nll": {"agg_value": 1.0, "n": 3}, "retain_nll": {"agg_value": 1.0, "n": 29}}
    assert "only 3 to be forgotten and 29 to be kept were measured" in judge({}, few).sentences[-1]
    many = {"forget_nll": {"agg_value": 1.0, "n": 30}}
    assert not [sentence for sentence in judge({}, many).sentences if "rough" in sentence]
