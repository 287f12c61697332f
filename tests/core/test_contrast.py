"""Inference-time forgetting: logits equal direct arithmetic, token by token, and so does text written with caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import token_batch

from jaxunlearn import losses, models, sharding, tree
from jaxunlearn.types import Model

VOCAB = 23
SIZES = {"intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5}
PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 20]]


def decoder(seed, **changes):
    fields = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2} | SIZES | changes
    return models.init(models.DecoderConfig(**fields), jax.random.key(seed))


@pytest.fixture(scope="module")
def parts():
    """A base decoder, the same with other weights, and two small ones of another architecture."""
    base, params = decoder(0)
    other = tree.axpy(0.3, tree.normal_like(jax.random.key(9), params), params)
    small, tiny = decoder(1, hidden_size=8, num_hidden_layers=1)
    _, tiny_before = decoder(2, hidden_size=8, num_hidden_layers=1)
    return {"base": (base, params), "other": (base, other), "small": (small, tiny), "before": (small, tiny_before)}


def whp(base, reinforced):
    return base - 2.0 * np.maximum(reinforced - base, 0.0)


def offset(big, unlearned, small):
    return big + 1.5 * (unlearned - small)


def uld(base, assistant, outside=None):
    log_p = base - np.log(np.exp(base).sum(-1, keepdims=True))
    inside = log_p >= log_p.max(-1, keepdims=True) + np.log(0.05)
    return np.where(inside, base - 0.8 * assistant, base if outside is None else outside)


CASES = {
    "whp": (("base", "other"), lambda b, r: models.whp(b, r, alpha=2.0), whp),
    "offset": (("base", "small", "before"), lambda b, u, s: models.offset(b, u, s, weight=1.5), offset),
    "uld": (("base", "small"), lambda b, a: models.uld(b, a, ratio=0.05), uld),
    "uld_drop": (
        ("base", "small"),
        lambda b, a: models.uld(b, a, ratio=0.05, outside="drop"),
        lambda b, a: uld(b, a, -1000.0),
    ),
}


@pytest.fixture(scope="module")
def direct(parts):
    """`(name, tokens) -> logits [B, T, V]` of each part by itself, in NumPy."""
    forward = {name: jax.jit(model.logits) for name, (model, _) in parts.items()}
    return lambda name, tokens: np.asarray(forward[name](parts[name][1], tokens), np.float64)


def greedy(logits_of, prompt, n, width=16):
    """Text by whole forward passes, a token at a time, no cache."""
    row = np.zeros((1, width), np.int32)
    row[0, : len(prompt)] = prompt
    for at in range(len(prompt), len(prompt) + n):
        row[0, at] = int(np.argmax(logits_of(row)[0, at - 1]))
    return row[0, len(prompt) : len(prompt) + n].tolist()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_arithmetic(name, parts, direct):
    wanted, make, rule = CASES[name]
    model, params = make(*(parts[w][0] for w in wanted)), tuple(parts[w][1] for w in wanted)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (3, 9)).astype(np.int32)
    expected = rule(*(direct(w, tokens) for w in wanted))
    positions = np.array([[8, 0], [3, 5], [2, 2]])
    whole, places = jax.jit(lambda p: (model.logits(p, tokens), model.logits_at(p, tokens, positions)))(params)
    np.testing.assert_allclose(whole, expected, atol=2e-4)
    np.testing.assert_allclose(places, np.take_along_axis(expected, positions[..., None], axis=1), atol=2e-4)
    base = direct("base", tokens)
    assert np.abs(expected - base).max() > 0.1  # it does something


@pytest.mark.parametrize("name", ["whp", "offset", "uld_drop"])
def test_text_with_caches_is_text_by_whole_passes(name, parts, direct):
    wanted, make, rule = CASES[name]
    model, params = make(*(parts[w][0] for w in wanted)), tuple(parts[w][1] for w in wanted)
    texts = models.generate(model, params, PROMPTS, max_new_tokens=6)
    plain = models.generate(*parts["base"], PROMPTS, max_new_tokens=6)
    assert texts == [greedy(lambda row: rule(*(direct(w, row) for w in wanted)), p, 6) for p in PROMPTS]
    assert texts != plain


def test_a_combination_is_scored_like_any_model(parts, direct):
    wanted, make, rule = CASES["offset"]
    model, params = make(*(parts[w][0] for w in wanted)), tuple(parts[w][1] for w in wanted)
    batch = token_batch(np.random.default_rng(1), 3, vocab=VOCAB)
    total, count = jax.jit(losses.nll, static_argnums=0)(model, params, batch)
    z = rule(*(direct(w, batch.tokens) for w in wanted))
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p[:, :-1], np.asarray(batch.tokens)[:, 1:, None], axis=-1)[..., 0]
    assert float(total) == pytest.approx(-float((picked * np.asarray(batch.loss_mask)[:, 1:]).sum()), rel=1e-4)
    assert float(count) == 24


def test_equal_combinations_share_what_is_compiled(parts):
    make = CASES["uld"][1]
    model = lambda: make(parts["base"][0], parts["small"][0])
    assert model() == model()
    assert hash(model()) == hash(model())
    assert model() != models.uld(parts["base"][0], parts["small"][0], ratio=0.06)


def test_a_black_box_needs_no_parameters(parts, direct):
    """The big model is a function that answers with logits; only what it says is used."""
    answers = np.random.default_rng(3).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    box = Model(logits=lambda nothing, tokens: jnp.asarray(answers)[tokens])
    small = parts["small"][0]
    model, params = models.offset(box, small, small), ((), parts["small"][1], parts["before"][1])
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    expected = answers[tokens] + direct("small", tokens) - direct("before", tokens)
    np.testing.assert_allclose(model.logits(params, tokens), expected, atol=2e-4)
    with pytest.raises(ValueError, match="combination of such decoders"):
        models.generate(model, params, PROMPTS, max_new_tokens=1)


def test_two_vocabularies_are_refused(parts):
    other, params = decoder(3, vocab_size=19, hidden_size=8, num_hidden_layers=1)
    model = models.whp(parts["base"][0], other)
    with pytest.raises(ValueError, match=r"vocabularies of \[23, 19\]"):
        jax.eval_shape(model.logits, (parts["base"][1], params), np.zeros((1, 2), np.int32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: models.whp(m, m, alpha=-1.0), "alpha=-1.0"),
        (lambda m: models.uld(m, m, ratio=0.0), "ratio=0.0"),
        (lambda m: models.uld(m, m, outside="keep"), "outside='keep'"),
    ],
)
def test_bad_settings_are_named(parts, make, message):
    with pytest.raises(ValueError, match=message):
        make(parts["base"][0])


def refused(row, grams):
    """By hand: `[T, V]`, where a token would complete an n-gram after row[: t + 1]."""
    n, table = grams.shape[1], {tuple(g) for g in grams.tolist()}
    out = np.zeros((len(row), VOCAB), bool)
    for t in range(n - 2, len(row)):
        for v in range(VOCAB):
            out[t, v] = (*row[t - n + 2 : t + 1], v) in table
    return out


@pytest.mark.parametrize("n", [2, 3, 5])
def test_memfree_refuses_what_completes_an_ngram(parts, direct, n):
    rng = np.random.default_rng(n)
    texts = rng.integers(0, 4, (6, 9))  # few different tokens: many matches
    grams = models.ngrams(texts.tolist(), n)
    assert len({tuple(g) for g in grams.tolist()}) == len(grams)
    tokens = rng.integers(0, 4, (3, 9)).astype(np.int32)
    model, params = models.memfree(parts["base"][0]), (parts["base"][1], jnp.asarray(grams))
    blocked = np.stack([refused(row.tolist(), grams) for row in tokens])
    assert 0 < blocked.mean() < 1
    expected = np.where(blocked, -1000.0, direct("base", tokens))
    positions = np.array([[8, 0], [3, 5], [2, 2]])
    whole, places = jax.jit(lambda p: (model.logits(p, tokens), model.logits_at(p, tokens, positions)))(params)
    np.testing.assert_allclose(whole, expected, atol=2e-4)
    np.testing.assert_allclose(places, np.take_along_axis(expected, positions[..., None], axis=1), atol=2e-4)


def test_memfree_text_holds_no_ngram_that_begins_after_the_prompt(parts, direct):
    """What the model writes by itself is the forget set; under the filter it writes none of its 3-grams."""
    base, params = parts["base"]
    plain = models.generate(base, params, PROMPTS, max_new_tokens=8)
    grams = models.ngrams([p + t for p, t in zip(PROMPTS, plain, strict=True)], 3)
    table = {tuple(g) for g in grams.tolist()}
    model, both = models.memfree(base), (params, jnp.asarray(grams))
    texts = models.generate(model, both, PROMPTS, max_new_tokens=8)

    def by_hand(row):
        return np.where(refused(row[0].tolist(), grams), -1000.0, direct("base", row))

    assert texts == [greedy(by_hand, p, 8) for p in PROMPTS]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        whole = prompt + text
        written = [tuple(whole[i : i + 3]) for i in range(max(len(prompt) - 2, 0), len(whole) - 2)]
        assert not table & set(written)


def test_filters_nest(parts, direct):
    """MemFree over WHP: the caches of both, one text."""
    base, params = parts["base"]
    combined, inner = models.whp(base, base, alpha=2.0), (params, parts["other"][1])
    plain = models.generate(combined, inner, PROMPTS, max_new_tokens=4)
    grams = models.ngrams([p + t for p, t in zip(PROMPTS, plain, strict=True)], 2)
    texts = models.generate(models.memfree(combined), (inner, jnp.asarray(grams)), PROMPTS, max_new_tokens=4)

    def by_hand(row):
        return np.where(refused(row[0].tolist(), grams), -1000.0, whp(direct("base", row), direct("other", row)))

    assert texts == [greedy(by_hand, p, 4) for p in PROMPTS]


@pytest.mark.slow
def test_on_an_explicit_mesh_the_text_is_the_same():
    """Every filter and every cache at once, the parameters of two decoders spread over eight devices."""
    config = models.DecoderConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, **SIZES)
    grams = jnp.asarray(models.ngrams([list(range(12))], 2))

    def results(mesh):
        (base, p), (other, q) = (models.init(config, jax.random.key(seed), mesh=mesh) for seed in (0, 1))
        model, params = models.memfree(models.whp(base, other)), ((p, q), grams)
        tokens = sharding.shard_batch(np.arange(32, dtype=np.int32).reshape(4, 8) % 24, mesh)
        text = models.generate(model, params, [[1, 2], [3], [4, 5, 6], [7]], max_new_tokens=3)
        return jax.device_get(jax.jit(model.logits)(params, tokens)), text

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, explicit=True)
    (expected, text), (logits, written) = results(None), results(mesh)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (expected == -1000.0).sum() > 0
    assert written == text


def test_ngrams_need_text():
    with pytest.raises(ValueError, match="n=1"):
        models.ngrams([[1, 2]], 1)
    with pytest.raises(ValueError, match="no sequence has 4 tokens"):
        models.ngrams([[1, 2]], 4)
