"""A tiny model folder with its own tokenizer, and record files: for what is about processes and files, not models."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Tiny(NamedTuple):
    """What `write` wrote: `base`, `forget.jsonl` and `retain.jsonl` in the folder, from these rows.

    Attributes:
        rows: a `data.Corpus` of six made-up people.
        tokenizer: trained on it.
    """

    rows: Any
    tokenizer: Any


def write(folder: Path, *, layers: int = 2, vocabulary: int = 1024) -> Tiny:
    """A decoder, 16 wide, that knows nothing, and what it could learn."""
    import jax

    from jaxunlearn import data, models

    rows = data.corpus(seed=5, people=6, facts=3, holdout=2)
    tokenizer = data.train_tokenizer(data.training_texts(rows), vocab_size=vocabulary)
    config = models.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, params = models.init(config, jax.random.key(0))
    models.save(folder / "base", model, params, tokenizer=tokenizer)
    for name in ("forget", "retain"):
        lines = "".join(json.dumps(row) + "\n" for row in getattr(rows, name))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return Tiny(rows, tokenizer)
