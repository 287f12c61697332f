r"""The document-level audit: was *this* document read? (Meeus et al. 2024, arXiv 2310.15007.)

An auditor has documents known to be in the training data and documents known not to be. A classifier learns to tell
their features apart (`documents`); how well it does on documents it did not learn from is the k-fold AUC. It then looks
at one suspect at a time.

A probability of .7 says nothing by itself, so the verdict is calibrated on the non-members: with the classifier of fold
f, does the suspect score higher than the non-members left out of f? Over all folds,

    p = (1 + #{non-members whose score is at least the suspect's}) / (1 + #{non-members}),

the cross-conformal p-value (Vovk 2015, "Cross-conformal predictors"): the share of never-seen documents that look at
least as learned. Its interval is Clopper and Pearson's. The verdict is "member" where the whole interval lies at or
under the level, "no evidence" where it lies above, else "undecided": with no non-member above it, a suspect is called a
member at level .1 from 36 non-members on.

Documents that belong together, several about one person say, must not be on both sides of a fold: the classifier would
recognise the person, and a model that never read anything would seem to give its texts away. `groups` keeps them
together, and the bootstrap draws whole groups.

An AUC below one half is no leak here, unlike that of a score without fitting: a classifier that finds nothing leans, in
each fold, away from what was left out, so that few documents or groups without any signal come out well under .5.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.evals.attacks.binomial import clopper_pearson
from jaxunlearn.evals.privacy import auc_draws

Classifier = Literal["random_forest", "logistic", "mlp"]
Verdict = Literal["member", "undecided", "no evidence"]


class Suspect(NamedTuple):
    """What the audit says of one document.

    Attributes:
        probability: of membership, the mean over the folds' classifiers; not calibrated.
        p_value: share of never-seen documents that look at least as learned.
        interval: of that share.
        verdict: of the audit.
    """

    probability: float
    p_value: float
    interval: tuple[float, float]
    verdict: Verdict


class Audit(NamedTuple):
    """An audit and how far it can be trusted.

    Attributes:
        auc: mean over folds of the AUC between members and non-members left out: the auditor's skill.
        interval: bootstrap over the groups of each fold; the classifiers are not refitted.
        suspects: one entry a suspect.
        suspect_auc: mean over folds of the AUC between suspects and non-members left out; None without suspects.
        suspect_interval: bootstrap interval of it.
        members, non_members: probability of membership of each known document from the classifier that left it out.
    """

    auc: float
    interval: tuple[float, float]
    suspects: tuple[Suspect, ...]
    suspect_auc: float | None
    suspect_interval: tuple[float, float] | None
    members: Float[np.ndarray, " N"]
    non_members: Float[np.ndarray, " M"]


def audit(
    members: Float[np.ndarray, "N F"],
    non_members: Float[np.ndarray, "M F"],
    suspects: Float[np.ndarray, "S F"] | None = None,
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    classifier: Classifier = "random_forest",
    folds: int = 5,
    level: float = 0.1,
    trees: int = 500,
    depth: int = 5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Fits the auditor, measures its skill, and audits each suspect by itself.

    Args:
        members, non_members: features of documents whose membership is known.
        suspects: features of documents to audit, none of them among the members.
        groups: what each member and each non-member belongs to; default each to itself.
        classifier: a random forest, logistic regression, or a perceptron of one layer of 100.
        folds: k, at most the groups of the smaller side.
        level: largest share of never-seen documents that may look as learned as a "member".
        trees, depth: of the forest.
        resamples, confidence: of the intervals.
        seed: of folds, classifiers and bootstrap.

    Errors:
        ValueError: too few documents, features that are not finite, or an argument out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> learned, unseen = rng.normal(0, 1, (40, 2)), rng.normal(5, 1, (40, 2))
        >>> found = audit(learned, unseen, np.array([[0.0, 0.0], [5.0, 5.0]]), classifier="logistic")
        >>> found.auc, [one.verdict for one in found.suspects]
        (1.0, ['member', 'no evidence'])
    """
    suspects = np.zeros((0, members.shape[1])) if suspects is None else np.asarray(suspects, np.float64)
    groups = groups or (range(len(members)), range(len(non_members)))
    _check(members, non_members, suspects, groups, classifier, folds, level)
    features = np.concatenate([members, non_members]).astype(np.float64)
    labels = np.r_[np.ones(len(members)), np.zeros(len(non_members))]
    fold = np.concatenate([folds_of(side, folds, seed + number) for number, side in enumerate(groups)])
    known = np.zeros(len(labels))
    on_suspects = np.zeros((folds, len(suspects)))
    above = np.zeros(len(suspects), int)
    skill, against = [], []
    rng = np.random.default_rng(seed)
    for number in range(folds):
        train, test = fold != number, fold == number
        fitted = _classifier(classifier, trees, depth, seed).fit(features[train], labels[train])
        known[test] = fitted.predict_proba(features[test])[:, 1]
        inside, outside = (known[test & (labels == label)] for label in (1, 0))
        within = [
            [name for name, at in zip(side, part, strict=True) if at == number]
            for side, part in zip(groups, (fold[labels == 1], fold[labels == 0]), strict=True)
        ]
        skill.append(auc_draws(inside, outside, resamples, rng, groups=within))
        if len(suspects):
            on_suspects[number] = fitted.predict_proba(suspects)[:, 1]
            above += np.sum(outside[:, None] >= on_suspects[number], axis=0)
            alone = range(len(suspects))
            against.append(auc_draws(on_suspects[number], outside, resamples, rng, groups=(alone, within[1])))
    n = len(non_members)
    judged = []
    for probability, k in zip(on_suspects.mean(axis=0), above, strict=True):
        interval = clopper_pearson(int(k), n, confidence)
        judged.append(Suspect(float(probability), (1 + int(k)) / (1 + n), interval, _verdict(interval, level)))
    return Audit(
        *_over_folds(skill, confidence),
        tuple(judged),
        *(_over_folds(against, confidence) if against else (None, None)),
        known[labels == 1],
        known[labels == 0],
    )


def non_members_needed(level: float = 0.1, confidence: float = 0.95) -> int:
    """How many non-members the verdict "member" takes: the fewest n with `clopper_pearson(0, n)` at or under the level.

    Example:
        >>> non_members_needed()
        36
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-level))


def folds_of(groups: Sequence[Hashable], folds: int, seed: int) -> Int[np.ndarray, " N"]:
    """The fold of each document: groups are dealt out at random, whole, so that no two folds differ by more than one.

    Example:
        >>> folds_of(["ann", "ann", "bob", "bob", "eve"], 3, seed=0).tolist()
        [2, 2, 0, 0, 1]
    """
    names = list(dict.fromkeys(groups))
    dealt = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    return np.array([dealt[name] for name in groups])


def _over_folds(folds: list[tuple[float, np.ndarray]], confidence: float) -> tuple[float, tuple[float, float]]:
    """Mean of an AUC over folds, and its interval from the folds' bootstrap draws."""
    low, high = np.quantile(
        np.mean([draws for _, draws in folds], axis=0), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return float(np.mean([auc for auc, _ in folds])), (float(low), float(high))


def _classifier(name: Classifier, trees: int, depth: int, seed: int):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    if name == "random_forest":
        return RandomForestClassifier(trees, max_depth=depth, random_state=seed)
    # Features differ in size by orders of magnitude; a tree does not mind, these two do.
    last = LogisticRegression(max_iter=1000) if name == "logistic" else MLPClassifier(alpha=0.01, max_iter=1000)
    return make_pipeline(MinMaxScaler(), last if name == "logistic" else last.set_params(random_state=seed))


def _verdict(interval: tuple[float, float], level: float) -> Verdict:
    if interval[1] <= level:
        return "member"
    return "no evidence" if interval[0] > level else "undecided"


def _check(members, non_members, suspects, groups, classifier, folds, level) -> None:
    if classifier not in ("random_forest", "logistic", "mlp"):
        raise ValueError(f"classifier {classifier!r}: choose random_forest, logistic or mlp")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a share of never-seen documents, between 0 and 1")
    if [len(side) for side in groups] != [len(members), len(non_members)]:
        raise ValueError("groups: name one for each member and one for each non-member")
    least = min(len(set(side)) for side in groups)
    if folds < 2 or folds > least:
        raise ValueError(
            f"folds={folds} with {len(set(groups[0]))} groups of members and {len(set(groups[1]))} of non-members: "
            "each fold needs at least one of either, and there must be two folds; give more documents or fewer folds"
        )
    for name, rows in (("members", members), ("non-members", non_members), ("suspects", suspects)):
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"{np.sum(~np.isfinite(rows).all(axis=1))} of {len(rows)} {name} have features not finite")
