"""The document-level audit: windows, values and features by hand, the auditor against scikit-learn."""

import jax
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

from jaxunlearn.evals.attacks.audit import audit, folds_of, non_members_needed
from jaxunlearn.evals.attacks.binomial import clopper_pearson
from jaxunlearn.evals.attacks.documents import (
    NAMES,
    Tokens,
    aggregate_features,
    histogram_features,
    log_frequencies,
    normalised,
    read_documents,
    windows,
)
from jaxunlearn.evals.score import score

from .attack_world import by_hand, world
from .bigram import MODEL, VOCAB, example, table


def long_text(n, seed=0):
    return example(np.random.default_rng(seed).integers(0, VOCAB, n).tolist(), prompt=1)


@pytest.mark.parametrize("length", [2, 5, 8, 9, 128, 129, 300])
@pytest.mark.parametrize(("context", "stride"), [(128, 127), (8, 7), (8, 3), (2, 1)])
def test_windows_predict_every_token_once_from_at_least_the_overlap(length, context, stride):
    document = long_text(length)
    document = document._replace(tokens=np.arange(length, dtype=np.int32))
    cut = windows(document, context=context, stride=stride)
    counted = np.concatenate([w.tokens[w.loss_mask == 1] for w in cut])
    assert counted.tolist() == list(range(1, length))
    assert all(len(w.tokens) <= context for w in cut)
    before = [int(np.flatnonzero(w.loss_mask)[0]) for w in cut]
    assert all(n >= min(context - stride, i) for n, i in zip(before[1:], range(1, length), strict=False))


def test_a_document_is_scored_window_by_window_and_like_any_text_where_one_is_enough():
    params, documents = table(3), [long_text(n, n) for n in (6, 40)]
    found = read_documents(MODEL, params, documents, context=16, stride=15)
    log_p = np.asarray(jax.nn.log_softmax(params), np.float64)
    for document, tokens in zip(documents, found, strict=True):
        # The bigram model sees one token back, which every window shows.
        np.testing.assert_allclose(tokens.log_probs, by_hand(MODEL, params, document), rtol=1e-5)
        np.testing.assert_allclose(tokens.largest, log_p[document.tokens[:-1]].max(-1), rtol=1e-5)
        assert tokens.ids.tolist() == document.tokens[1:].tolist()
    w = world()
    whole = read_documents(w.model, w.knows, w.members[:3])
    for tokens, row in zip(whole, score(w.model, w.knows, w.members[:3]).log_probs, strict=True):
        np.testing.assert_allclose(tokens.log_probs, row, atol=1e-5)
    joined = w.members[0]._replace(
        tokens=np.concatenate([one.tokens for one in w.members[:3]]),
        loss_mask=np.concatenate([one.loss_mask for one in w.members[:3]]),
    )
    [cut] = read_documents(w.model, w.knows, [joined], context=20, stride=19, batch_size=2)
    expected = [by_hand(w.model, w.knows, piece) for piece in windows(joined, context=20, stride=19)]
    np.testing.assert_allclose(cut.log_probs, np.concatenate(expected), atol=1e-4)


def test_values_and_norms_by_hand():
    one = Tokens(np.array([3, 4, 9]), np.log([0.2, 0.5, 0.1]), np.log([0.6, 0.5, 0.4]))
    pool = [Tokens(np.array([3, 3, 4]), None, None), Tokens(np.array([3]), None, None)]
    norms = log_frequencies([one], pool)
    np.testing.assert_allclose(np.exp(norms[0]), [3 / 4, 1 / 4, 1 / 8])
    np.testing.assert_allclose(normalised([one], "none")[0], -np.log([0.2, 0.5, 0.1]))
    np.testing.assert_allclose(normalised([one], "ratio", norms)[0], -np.log([0.2 / 0.75, 0.5 / 0.25, 0.1 / 0.125]))
    np.testing.assert_allclose(normalised([one], "max", norms)[0], -np.log([0.6 / 0.75, 1 / 0.25, 0.7 / 0.125]))
    general = [np.log([0.1, 0.1, 0.1])]
    np.testing.assert_allclose(normalised([one], "ratio", general)[0], -np.log([2.0, 5.0, 1.0]), atol=1e-12)
    with pytest.raises(ValueError, match="needs log_norms"):
        normalised([one], "max")
    with pytest.raises(ValueError, match="'mean'"):
        normalised([one], "mean")


def test_features_by_hand():
    values = [np.arange(101.0), np.array([7.0])]
    found = aggregate_features(values)
    assert found.shape == (2, len(NAMES)) == (2, 14)
    assert found[0].tolist() == [50, 0, 100, np.std(np.arange(101)), 101, 1, 5, 10, 25, 50, 75, 90, 95, 99]
    assert found[1].tolist() == [7, 7, 7, 0, 1, *[7] * 9]
    density = histogram_features(values, [np.arange(101.0)], bins=4)
    np.testing.assert_allclose(density, [[25 / 2525, 25 / 2525, 25 / 2525, 26 / 2525], [1 / 25, 0, 0, 0]])
    wide = histogram_features([np.random.default_rng(0).normal(size=50)], [np.array([-9.0, 9.0])])
    assert wide.shape == (1, 1000)
    assert wide.sum() * 18 / 1000 == pytest.approx(1.0)
    assert histogram_features([np.array([5.0])], [np.array([0.0, 1.0])], bins=2).tolist() == [[0.0, 0.0]]


def test_the_auditor_equals_scikit_learn_by_hand():
    rng = np.random.default_rng(1)
    members, others, suspects = rng.normal(0, 1, (30, 3)), rng.normal(1, 1, (25, 3)), rng.normal(0.5, 1, (7, 3))
    found = audit(members, others, suspects, classifier="logistic", folds=5, seed=4)
    features, labels = np.concatenate([members, others]), np.r_[np.ones(30), np.zeros(25)]
    aucs, against, above, left_out = [], [], np.zeros(7), np.zeros(55)
    fold = np.r_[folds_of(range(30), 5, 4), folds_of(range(25), 5, 5)]
    for number in range(5):
        train, test = fold != number, fold == number
        scaler = MinMaxScaler().fit(features[train])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(features[train]), labels[train])
        left_out[test] = model.predict_proba(scaler.transform(features[test]))[:, 1]
        aucs.append(roc_auc_score(labels[test], left_out[test]))
        unseen = left_out[test][labels[test] == 0]
        scores = model.predict_proba(scaler.transform(suspects))[:, 1]
        above += (unseen[:, None] >= scores).sum(axis=0)
        against.append(roc_auc_score(np.r_[np.ones(7), np.zeros(len(unseen))], np.r_[scores, unseen]))
    assert found.auc == pytest.approx(np.mean(aucs))
    assert found.suspect_auc == pytest.approx(np.mean(against))
    assert found.interval[0] < found.auc < found.interval[1]
    assert found.suspect_interval[0] < found.suspect_auc < found.suspect_interval[1]
    np.testing.assert_allclose(found.members, left_out[:30])
    np.testing.assert_allclose(found.non_members, left_out[30:])
    for one, k in zip(found.suspects, above, strict=True):
        assert one.p_value == pytest.approx((1 + k) / 26)
        exact = binomtest(int(k), 25).proportion_ci(method="exact")
        assert one.interval == pytest.approx((exact.low, exact.high))
        expected = "member" if exact.high <= 0.1 else "no evidence" if exact.low > 0.1 else "undecided"
        assert one.verdict == expected


def test_folds_are_even_and_keep_groups_whole():
    groups = [f"person {i // 4}" for i in range(44)]
    fold = folds_of(groups, 3, seed=1)
    assert [len({fold[i] for i, g in enumerate(groups) if g == name}) for name in set(groups)] == [1] * 11
    assert sorted(np.bincount(fold).tolist()) == [12, 16, 16]
    assert sorted(np.bincount(folds_of(range(44), 5, seed=1)).tolist()) == [8, 9, 9, 9, 9]
    assert folds_of(groups, 3, seed=2).tolist() != fold.tolist()


def test_texts_about_one_person_in_two_folds_give_the_person_away_and_in_one_they_do_not():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(2, 12, 8))  # members and others differ in nothing but who they are
    sides = [np.repeat(side, 4, axis=0) + 0.1 * rng.normal(size=(48, 8)) for side in people]
    groups = [[(number, i // 4) for i in range(48)] for number in range(2)]
    apart = audit(*sides, classifier="logistic", folds=4)
    together = audit(*sides, groups=tuple(groups), classifier="logistic", folds=4)
    assert apart.interval[0] > 0.55
    assert together.auc < apart.auc - 0.1


@pytest.mark.parametrize("classifier", ["random_forest", "logistic", "mlp"])
@pytest.mark.parametrize("kind", ["aggregate", "histogram"])
def test_every_auditor_finds_learned_documents_and_no_others(classifier, kind):
    rng = np.random.default_rng(2)
    learned = [rng.gamma(2.0, 0.2, 60) for _ in range(50)]
    unseen = [rng.gamma(2.0, 1.0, 60) for _ in range(50)]
    known = [*learned[:40], *unseen[:40]]

    def features(values):
        return aggregate_features(values) if kind == "aggregate" else histogram_features(values, known, bins=30)

    suspects = [*learned[40:], *unseen[40:]]
    found = audit(
        features(known[:40]), features(known[40:]), features(suspects), classifier=classifier, folds=3, trees=20
    )
    assert found.auc > 0.95
    verdicts = [one.verdict for one in found.suspects]
    assert verdicts[:10] == ["member"] * 10
    assert "member" not in verdicts[10:]


def test_noise_is_no_evidence():
    rng = np.random.default_rng(3)
    found = audit(*rng.normal(size=(2, 60, 4)), rng.normal(size=(60, 4)), trees=25)
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert found.suspect_interval[0] <= 0.5 <= found.suspect_interval[1]
    # A p-value of a never-seen document is uniform, so about 6 of 60 fall under .1, and only extreme ones are named.
    assert np.mean([one.p_value <= 0.5 for one in found.suspects]) == pytest.approx(0.5, abs=0.2)
    assert sum(one.verdict == "member" for one in found.suspects) <= 6


def test_documents_of_a_real_model_are_told_apart():
    w = world()
    read = read_documents(w.model, w.knows, [*w.members, *w.outside])
    values = normalised(read, "ratio", log_frequencies(read, read))
    features = aggregate_features(values)
    known, suspects, unseen = features[24:48], features[:24], features[48:]
    found = audit(known, unseen, suspects, classifier="logistic")
    assert found.auc > 0.95
    assert found.suspect_auc > 0.95
    assert all(one.verdict == "member" for one in found.suspects)


@pytest.mark.parametrize(("k", "m"), [(0, 7), (3, 7), (7, 7), (1, 400)])
def test_exact_intervals_equal_scipy(k, m):
    exact = binomtest(k, m).proportion_ci(0.9, method="exact")
    assert clopper_pearson(k, m, 0.9) == pytest.approx((exact.low, exact.high))
    between = clopper_pearson(k + 0.5, m, 0.9)
    if k < m:
        assert between == pytest.approx((exact.low, clopper_pearson(k + 1, m, 0.9)[1]))


@pytest.mark.parametrize(("level", "confidence"), [(0.1, 0.95), (0.05, 0.9), (0.3, 0.99)])
def test_a_verdict_takes_the_fewest_non_members_that_can_give_it(level, confidence):
    n = non_members_needed(level, confidence)
    assert clopper_pearson(0, n, confidence)[1] <= level < clopper_pearson(0, n - 1, confidence)[1]


def test_bad_input_is_named():
    rows = np.zeros((4, 2))
    for call, message in (
        (lambda: windows(long_text(5), context=1, stride=1), "context=1"),
        (lambda: windows(long_text(5), context=8, stride=8), "stride=8"),
        (lambda: audit(rows, rows[:1]), "4 groups of members and 1 of non-members"),
        (lambda: audit(rows, rows, classifier="svm", folds=2), "classifier 'svm'"),
        (lambda: audit(rows, rows, folds=2, level=0.0), "level=0.0"),
        (lambda: audit(rows, rows * np.nan, folds=2), "4 of 4 non-members"),
        (lambda: read_documents(MODEL, table(0), [example([1, 2], prompt=2)]), "document 0 has no loss token"),
        (lambda: read_documents(MODEL, table(0) * np.nan, [long_text(5)]), "document 0 has tokens of probability 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
