"""A tiny model folder with its own tokenizer, record files, and the encoded records of both."""

import json
from typing import NamedTuple

import jax
import pytest

from jaxunlearn import data, models


class World(NamedTuple):
    """Folders, files and objects every test of a run can read and none changes."""

    model: str
    forget: str
    retain: str
    rows: data.Corpus
    tokenizer: object


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rows = data.corpus(seed=5, people=6, facts=3, holdout=2)
    tokenizer = data.train_tokenizer(data.training_texts(rows), vocab_size=1024)
    config = models.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, params = models.init(config, jax.random.key(0))
    models.save(folder / "base", model, params, tokenizer=tokenizer)
    return World(
        str(folder / "base"),
        write_rows(folder / "forget.jsonl", rows.forget),
        write_rows(folder / "retain.jsonl", rows.retain),
        rows,
        tokenizer,
    )


class Encoded(NamedTuple):
    """The world's model and records in memory."""

    model: object
    params: object
    forget: list
    retain: list


@pytest.fixture(scope="session")
def encoded(world):
    model, params = models.load(world.model)
    sets = (data.encode(data.from_rows(part), world.tokenizer, max_length=64) for part in world.rows[:2])
    return Encoded(model, params, *sets)
