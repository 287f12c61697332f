"""The decoder computes what PyTorch's transformers computes, for every switch of the configuration."""

import jax
import numpy as np
import pytest
import torch
import transformers
from decoder_cases import CONFIGS, tokens_for

from jaxunlearn import models
from jaxunlearn.models import generation

GREEDY = "Once upon a time, there was a little girl named Lily."


def torch_logits(module, tokens):
    with torch.no_grad():
        return module(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def torch_load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_equal_torch_and_survive_a_round_trip(case, tmp_path):
    config = models.DecoderConfig(**CONFIGS[case])
    torch.manual_seed(0)
    original = transformers.LlamaForCausalLM._from_config(config.to_hf(), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in original.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + (1.0 if "norm" in name else 0.0))
    original.save_pretrained(tmp_path / "torch")
    tokens = tokens_for(config, length=40)
    expected = torch_logits(original, tokens)

    model, params = models.load(tmp_path / "torch")
    assert model.source.config == config
    error = np.abs(np.asarray(jax.jit(model.logits)(params, tokens)) - expected).max()
    print(f"parity {case}: {error:.1e}")
    assert error < 1e-4

    models.save(tmp_path / "ours", model, params, max_shard_size=20_000)
    assert np.abs(torch_logits(torch_load(tmp_path / "ours"), tokens) - expected).max() == 0.0
    again, loaded = models.load(tmp_path / "ours")
    assert again == model
    assert hash(again) == hash(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, loaded)))


def test_real_checkpoint(stories260k, tmp_path):
    model, params = models.load(stories260k)
    tokens = tokens_for(model.source.config, batch=2, length=200)
    expected = torch_logits(torch_load(stories260k), tokens)
    error = np.abs(np.asarray(jax.jit(model.logits)(params, tokens)) - expected).max()
    print(f"parity stories260k: {error:.1e}")
    assert error < 1e-4

    models.save(tmp_path / "copy", model, params)
    assert np.abs(torch_logits(torch_load(tmp_path / "copy"), tokens) - expected).max() == 0.0
    text = "A little dog ran."
    assert models.load_tokenizer(tmp_path / "copy")(text) == models.load_tokenizer(stories260k)(text)
    assert (tmp_path / "copy" / "generation_config.json").read_bytes() == (
        stories260k / "generation_config.json"
    ).read_bytes()


def test_real_checkpoint_tells_its_story(stories260k):
    model, params = models.load(stories260k)
    tokenizer = models.load_tokenizer(stories260k)
    [continuation] = models.generate(model, params, [[1]], max_new_tokens=40, stop_ids=(1, 2))
    assert tokenizer.decode(continuation).startswith(GREEDY)


def test_generation_equals_torch_greedy(stories260k):
    model, params = models.load(stories260k)
    reference = torch_load(stories260k)
    prompts = [[1, 403], [1], [1, 390, 300, 261, 410, 299], list(range(3, 40))]
    ours = models.generate(model, params, prompts, max_new_tokens=20, batch_size=3)
    for prompt, continuation in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert continuation == out[0, len(prompt) :].tolist()


def test_stop_strings_end_the_loop_where_they_end_that_of_torch(stories260k, monkeypatch):
    model, params = models.load(stories260k)
    tokenizer = models.load_tokenizer(stories260k)
    prompts = [[1, 403], [1], [1, 390, 300, 261, 410, 299]]
    strings, new = (" girl n", ". He", "big, sh"), 32
    written, inner = [], generation.continue_batch
    monkeypatch.setattr(generation, "continue_batch", lambda *args: written.append(inner(*args)) or written[-1])
    ours = models.generate(model, params, prompts, max_new_tokens=new, stop_strings=strings, tokenizer=tokenizer)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # Rows that are done are only padded where there is an end-of-text token: one that is never written.
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0}
    out = torch_load(stories260k).generate(
        ids, attention_mask=mask, stop_strings=list(strings), tokenizer=tokenizer, **options
    )
    theirs = [[token for token in row if token > 0] for row in out[:, width:].tolist()]
    [(tokens, lengths)] = written
    assert [row[:n].tolist() for row, n in zip(np.asarray(tokens), lengths, strict=True)] == theirs
    assert max(map(len, theirs)) < new
    for row, whole in zip(ours, theirs, strict=True):
        text, at = tokenizer.decode(whole), len(tokenizer.decode(row))
        first = min(where for where in map(text.find, strings) if where >= 0)
        assert row == whole[: len(row)]
        assert at <= first < len(tokenizer.decode(whole[: len(row) + 1]))


def test_bfloat16_checkpoint_keeps_its_dtype_and_stays_near_float32(stories260k, tmp_path):
    model, params = models.load(stories260k, dtype="bfloat16")
    models.save(tmp_path / "half", model, params)
    again, halved = models.load(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(halved)} == {"bfloat16"}
    tokens = tokens_for(model.source.config, batch=1, length=64)
    half = torch_load(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    ours, wide = again.logits(halved, tokens), torch_logits(half.float(), tokens)
    assert ours.dtype == np.float32
    assert np.abs(np.asarray(ours) - wide).mean() < 0.05 * np.abs(wide).mean()
