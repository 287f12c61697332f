"""The suite on the real checkpoint and real TOFU questions, against logits looked up by hand."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxunlearn import data, evals, models


def test_real_model_and_questions(stories260k, tofu):
    model, params = models.load(stories260k)
    tokenizer = models.load_tokenizer(stories260k)
    forget = data.encode(data.read(tofu / "forget01_perturbed.json")[:3], tokenizer, max_length=512)
    nudged = jax.tree.map(lambda leaf: 1.02 * leaf, params)
    result = evals.evaluate(
        model,
        params,
        tokenizer,
        forget=forget,
        reference=(model, nudged),
        generate=models.generate,
        max_new_tokens=8,
        max_length=512,
    )
    tokens = data.collate(forget).tokens
    raw = [np.asarray(jax.jit(model.logits)(weights, tokens), np.float64) for weights in (params, nudged)]
    for i, one in enumerate(forget):
        log_p, log_q = (log_softmax(logits[i], axis=-1) for logits in raw)
        places = np.flatnonzero(one.loss_mask)
        nll = -log_p[places - 1, one.tokens[places]].mean()
        kl = (np.exp(log_q) * (log_q - log_p))[places - 1].sum(-1).mean()
        assert result["forget_nll"]["value_by_index"][str(i)] == pytest.approx(nll, rel=1e-4)
        assert result["forget_kl"]["value_by_index"][str(i)] == pytest.approx(kl, rel=1e-2)
    assert 0 <= result["forget_rouge_l"]["agg_value"] <= 1
    assert result["forget_quality"]["n"] == 3
