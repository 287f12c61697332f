"""Every objective beside an independent evaluation of its formula on fixed logits, in one table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.objectives import reference

V = 7
MODEL = ju.Model(logits=lambda table, tokens: table[tokens])
IN_CHUNKS = MODEL._replace(hidden=lambda table, tokens: table[tokens], head=lambda table, hidden: hidden, head_rows=18)


def rows(seed, answers, length=10, prompt=3):
    """Sequences with `answers[i]` loss tokens in row i; a row with none is what fills up a short batch."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (len(answers), length)).astype(np.int32)
    mask, positions = np.zeros((len(answers), length), np.float32), np.zeros((len(answers), 6), np.int32)
    for row, n in enumerate(answers):
        mask[row, prompt : prompt + n] = 1
        positions[row, :n] = np.arange(prompt, prompt + n)
    return ju.TokenBatch(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(positions))


class World(NamedTuple):
    """A batch, the original table and the current one, float64."""

    batch: ju.UnlearnBatch
    old: np.ndarray
    now: np.ndarray


def stored(old, forget, retain, alternative, k):
    top = reference.top(MODEL, old, forget, V)
    return ju.Reference(
        forget_nll=reference.sequence_nll(MODEL, old, forget),
        alternative_nll=reference.sequence_nll(MODEL, old, alternative),
        retain_top=reference.top(MODEL, old, retain, k),
        retain_top_all=reference.top_all(MODEL, old, retain, k),
        forget_top=reference.top_with_target(MODEL, old, forget, k),
        counterfactual_top=top._replace(log_probs=jax.nn.log_softmax(-top.log_probs)),
    )


def logp(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def answers(table, batch):
    """Per example with loss: logits at its loss tokens [n, V] and those tokens [n]."""
    out = []
    for tokens, mask in zip(np.asarray(batch.tokens), np.asarray(batch.loss_mask), strict=True):
        at = np.flatnonzero(mask)
        if len(at):
            out.append((np.asarray(table)[tokens[at - 1]], tokens[at]))
    return out


def sequence(table, batch):
    return np.array([-logp(z)[np.arange(len(y)), y].sum() for z, y in answers(table, batch)])


def lengths(table, batch):
    return np.array([len(y) for _, y in answers(table, batch)])


def per_token(f):
    """The mean over all loss tokens of forget of `f(z, y, z_original, z_constant)`."""

    def mean(now, w, constant):
        places = [
            f(z, y, z0, zc)
            for example in zip(*(answers(t, w.batch.forget) for t in (now, w.old, constant)), strict=True)
            for z, y, z0, zc in zip(*[example[0][0], example[0][1], example[1][0], example[2][0]], strict=True)
        ]
        return np.mean(places)

    return mean


def preference(c, beta, margin):
    return lambda now, w, _: np.mean(c / beta * np.log1p(np.exp(-beta * margin(now, w))))


def kl_retain(now, w, _):
    pairs = zip(answers(w.old, w.batch.retain), answers(now, w.batch.retain), strict=True)
    return np.mean(np.concatenate([(np.exp(logp(a)) * (logp(a) - logp(b))).sum(-1) for (a, _), (b, _) in pairs]))


def kl_everywhere(now, w, _):
    real = np.asarray(w.batch.retain.tokens)[np.asarray(w.batch.retain.loss_mask).any(1)]
    a, b = logp(w.old[real]), logp(now[real])
    return np.mean((np.exp(a) * (a - b)).sum(-1))


def counterfactual(z, y, z0, zc):
    q = np.exp(logp(-logp(z0)))
    return (q * (np.log(q) - logp(z))).sum()


def jeffreys(z, y, z0, zc):
    q, p = np.exp(logp(-logp(z0))), np.exp(logp(z))
    return 0.5 * ((q - p) * (np.log(q) - np.log(p))).sum()


def undial(z, y, z0, zc):
    q = np.exp(logp(z0 - 10.0 * (np.arange(V) == y)))
    return -(q * logp(z)).sum()


def adversarial(z, y, z0, zc):
    return -logp(z)[np.argmax(np.where(np.arange(V) == y, -np.inf, z0))]


def ce_u(z, y, z0, zc):
    return -(np.exp(logp(np.where(np.arange(V) == y, -np.inf, zc))) * logp(z)).sum()


def hinge(z, y, z0, zc):
    p = np.exp(logp(z))
    return max(0, 1 + p[y] - np.delete(p, y).max())


def weighted(b1, b2):
    def f(z, y, z0, zc):
        p = np.exp(logp(zc))[y]
        return p**b1 * (1 - p) ** b2 * logp(z)[y]

    return f


def dpo(now, w):
    moved = lambda batch: sequence(now, batch) - sequence(w.old, batch)
    return moved(w.batch.forget) - moved(w.batch.alternative)


# name: (term, its mean by NumPy as a function of the current table, the world, and the table taken as constant)
TERMS = {
    "nll": (objectives.NLL("forget"), per_token(lambda z, y, z0, zc: -logp(z)[y])),
    "wga": (objectives.WeightedAscent(2.0), per_token(weighted(2.0, 0.0))),
    "satimp": (objectives.WeightedAscent(5.0, 1.0), per_token(weighted(5.0, 1.0))),
    "npo": (
        objectives.NPO(0.3),
        preference(2, 0.3, lambda t, w: sequence(t, w.batch.forget) - sequence(w.old, w.batch.forget)),
    ),
    "simnpo": (
        objectives.SimNPO(4.5, 0.7),
        preference(2, 4.5, lambda t, w: sequence(t, w.batch.forget) / lengths(t, w.batch.forget) - 0.7),
    ),
    "dpo": (objectives.DPO(0.2), preference(2, 0.2, dpo)),
    "answer_preservation": (
        objectives.AnswerPreservation(0.1),
        preference(1, 0.1, lambda t, w: sequence(t, w.batch.retain_alternative) - sequence(t, w.batch.retain)),
    ),
    "kl_retain": (objectives.KLRetain(), kl_retain),
    "kl_all_positions": (objectives.KLRetain("all_positions"), kl_everywhere),
    "counterfactual": (objectives.CounterfactualKL("forward"), per_token(counterfactual)),
    "counterfactual, both ways": (objectives.CounterfactualKL(), per_token(jeffreys)),
    "counterfactual, reverse": (
        objectives.CounterfactualKL("reverse"),
        per_token(lambda *z: 2 * jeffreys(*z) - counterfactual(*z)),
    ),
    "undial": (objectives.UNDIAL(10.0), per_token(undial)),
    "max_entropy": (objectives.MaxEntropy(), per_token(lambda z, *_: np.mean(-np.log(V) - logp(z)))),
    "adversarial": (objectives.AdversarialNLL(), per_token(adversarial)),
    "ce_u": (objectives.CrossEntropyUnlearning(), per_token(ce_u)),
    "inverted_hinge": (objectives.InvertedHinge(), per_token(hinge)),
    "logit_flattening": (objectives.LogitFlattening(), per_token(lambda z, *_: (z.max() - z.mean()) ** 2)),
}
