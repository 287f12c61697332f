"""Membership attacks against torch and by hand; a model that knows its texts, and one that never saw any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn import models
from jaxunlearn.evals.attacks.conditional import behind_prefix
from jaxunlearn.evals.attacks.documents import read_documents
from jaxunlearn.evals.attacks.gradient_norm import gradient_norms
from jaxunlearn.evals.attacks.membership import ATTACKS, Attacker, membership
from jaxunlearn.evals.attacks.neighbourhood import (
    model_proposals,
    neighbour_nll,
    neighbours,
    unigram_proposals,
)
from jaxunlearn.evals.attacks.probes import mean_states
from jaxunlearn.evals.score import score
from jaxunlearn.sharding import make_mesh

from .attack_world import by_hand, world
from .bigram import MODEL, VOCAB, example, examples, table

TEXTS = examples(12, seed=3)


@pytest.fixture(scope="module")
def attacked():
    w = world()
    attacker = Attacker(
        reference=(w.model, w.blank),
        max_length=160,
        begin=w.tokenizer.bos_token_id,
        keep=w.tokenizer.all_special_ids,
        at_once=8,
    )
    return {name: membership(w.model, p, w.members, w.outside, attacker=attacker) for name, p in
            (("knows", w.knows), ("blank", w.blank))}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_memorising_model_is_found_out_and_one_that_never_saw_the_texts_is_not(attacked, name):
    found, blank = attacked["knows"][name], attacked["blank"][name]
    assert found["agg_value"] > 0.95
    assert found["interval"][0] <= found["agg_value"] <= found["interval"][1]
    assert blank["interval"][0] <= 0.5 <= blank["interval"][1]
    assert blank["tpr_at_01pct"] <= blank["tpr_at_1pct"]
    assert (found["n"], found["target"]) == (48, 0.5)
    assert len(found["holdout_by_index"]) == (44 if name == "forget_recall_auc" else 48)


def test_gradient_norms_equal_torch():
    params = table(5)
    found = gradient_norms(MODEL, params, TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        weights = torch.tensor(np.asarray(params, np.float64), requires_grad=True)
        places = np.flatnonzero(text.loss_mask)
        log_p = torch.log_softmax(weights, -1)[text.tokens[places - 1], text.tokens[places]]
        (-log_p.mean()).backward()
        assert value == pytest.approx(weights.grad.norm().item(), rel=1e-5)


def test_scores_do_not_depend_on_the_batch_size():
    halves, names = (TEXTS[:6], TEXTS[6:]), [f"forget_{name}_auc" for name in ("gradient_norm", "neighbourhood")]
    common = {"attacker": Attacker(neighbours=2), "only": names}
    whole, parts = (membership(MODEL, table(5), *halves, batch_size=size, **common) for size in (32, 3))
    for name in names:
        for column in ("value_by_index", "holdout_by_index"):
            values = [list(result[name][column].values()) for result in (whole, parts)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_what_attacks_ask_of_a_decoder_is_the_same_when_its_weights_are_spread():
    config, texts = world().model.source.config, world().members[:4]
    found = []
    for mesh in (None, make_mesh(data=2, fsdp=2, tensor=2, explicit=True)):
        model, params = models.init(config, jax.random.key(2), mesh=mesh, remat="none")
        [one, *_] = read_documents(model, params, texts, mesh=mesh)
        [(ids, weights), *_] = model_proposals(model, params, texts, 3, mesh=mesh)
        states = mean_states(model, params, texts, layer=1, mesh=mesh)
        found.append(
            [gradient_norms(model, params, texts, mesh=mesh), one.log_probs, one.largest, ids, weights, states]
        )
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("source", ["model", "unigram"])
def test_neighbours_differ_where_they_may_and_by_what_was_proposed(source):
    params, keep, share, count = table(7), (0, 3), 0.3, 5
    if source == "model":
        proposals = model_proposals(MODEL, params, TEXTS, 4)
        for text, (ids, weights) in zip(TEXTS, proposals, strict=True):
            for row, place in enumerate(np.flatnonzero(text.loss_mask)):
                p = np.asarray(jax.nn.softmax(params[text.tokens[place - 1]]), np.float64)
                p[text.tokens[place]] = 0
                best = np.argsort(-p)[:4]
                assert ids[row].tolist() == best.tolist()
                np.testing.assert_allclose(weights[row], p[best], rtol=1e-5)
    else:
        proposals = unigram_proposals(TEXTS, TEXTS)
        pool = np.concatenate([t.tokens[np.flatnonzero(t.loss_mask)] for t in TEXTS])
        ids, counts = np.unique(pool, return_counts=True)
        assert proposals[0][0][0].tolist() == ids.tolist()
        assert proposals[0][1][0].tolist() == counts.tolist()
    near = neighbours(TEXTS, proposals, count=count, share=share, keep=keep)
    assert len(near) == count * len(TEXTS)
    for number, text in enumerate(TEXTS):
        n = np.count_nonzero(text.loss_mask)
        free = np.count_nonzero(text.loss_mask * ~np.isin(text.tokens, keep))
        for copy in near[number * count : (number + 1) * count]:
            changed = np.flatnonzero(copy.tokens != text.tokens)
            assert len(changed) == min(max(1, round(share * n)), free)
            assert np.all(text.loss_mask[changed] == 1)
            assert not np.isin(text.tokens[changed], keep).any()
            assert not np.isin(copy.tokens[changed], keep).any()
    nll = neighbour_nll(MODEL, params, TEXTS, source=source, count=count, share=share, keep=keep, top_k=4)
    expected = [-by_hand(MODEL, params, copy).mean() for copy in near]
    np.testing.assert_allclose(nll.ravel(), expected, rtol=1e-5)


def test_replacements_are_drawn_in_proportion():
    pool = [example([0, *[1] * 10, *[2] * 30, *[3] * 60])]
    near = neighbours([example([0, 1])], unigram_proposals([None], pool), count=2000, share=1.0)
    drawn = np.array([one.tokens[1] for one in near])
    # 1 itself is never drawn; of the others 2 has a third. Four standard errors: 4 sqrt(2/9 / 2000) = .042
    assert set(drawn) == {2, 3}
    assert np.mean(drawn == 2) == pytest.approx(1 / 3, abs=0.042)


def test_a_prefix_stands_in_front_of_every_text_and_changes_no_loss_token():
    prefix = [example([9, 1, 2, 8]), example([9, 3, 8]), example([9, *range(1, 8), 8])]
    texts = [example([9, 4, 5, 8], prompt=2), example([9, 6, 8])]
    found = behind_prefix(texts, prefix, max_length=10, begin=9)
    assert [one.tokens.tolist() for one in found] == [[9, 1, 2, 8, 3, 8, 4, 5, 8], [9, 1, 2, 8, 3, 8, 6, 8]]
    assert [np.flatnonzero(one.loss_mask).tolist() for one in found] == [[7, 8], [6, 7]]
    kept = behind_prefix(texts, prefix, max_length=12)
    assert kept[0].tokens.tolist() == [9, 1, 2, 8, 9, 3, 8, 9, 4, 5, 8]
    w = world()
    [one] = behind_prefix(w.members[:1], w.outside[:2], max_length=160, begin=w.tokenizer.bos_token_id)
    [row] = score(w.model, w.knows, [one]).log_probs
    np.testing.assert_allclose(row, by_hand(w.model, w.knows, one), atol=1e-4)
    assert len(row) == np.count_nonzero(w.members[0].loss_mask)
    with pytest.raises(ValueError, match="do not fit in 6 tokens"):
        behind_prefix(texts, prefix, max_length=6, begin=9)
    with pytest.raises(ValueError, match="at least one text"):
        behind_prefix(texts, [], max_length=6)


def test_what_is_missing_is_skipped_with_a_reason_and_bad_input_is_named():
    found = membership(MODEL, table(0), TEXTS[:2], TEXTS[2:3], only=["forget_reference_auc", "forget_recall_auc"])
    assert found["forget_reference_auc"]["skipped"] == "no reference model given"
    assert found["forget_recall_auc"]["skipped"] == "no context length given"
    one = membership(MODEL, table(0), TEXTS[:2], TEXTS[2:3], only=["forget_recall_auc"],
                     attacker=Attacker(max_length=99))  # fmt: skip
    assert "both prefix and comparison" in one["forget_recall_auc"]["skipped"]
    broken = membership(MODEL, jnp.full((VOCAB, VOCAB), jnp.nan), TEXTS[:2], TEXTS[2:4], only=["forget_loss_auc"])
    assert "not finite" in broken["forget_loss_auc"]["problem"]
    for arguments, message in (
        ({"members": []}, "among the members"),
        ({"non_members": []}, "among the non-members"),
        ({"only": ["loss"]}, "no membership attack is called 'loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            membership(MODEL, table(0), **({"members": TEXTS[:2], "non_members": TEXTS[2:4]} | arguments))
    for arguments, message in (
        ({"count": 0}, "count=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"share": 0}, "share=0"),
        ({"source": "unigram", "pool": [example([0, 1])]}, "1 different tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            neighbour_nll(MODEL, table(0), TEXTS[:2], **arguments)
    with pytest.raises(ValueError, match="at_once=0"):
        gradient_norms(MODEL, table(0), TEXTS[:2], at_once=0)
    with pytest.raises(ValueError, match="shots=0"):
        Attacker(shots=0)
