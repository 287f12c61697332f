"""Suites on a mesh of eight devices give the numbers of one device, generation included."""

import jax
import pytest

from jaxunlearn import models
from jaxunlearn.evals import Run, run_suites, why_missing
from jaxunlearn.evals.multiple_choice import choices
from jaxunlearn.evals.suites import Choice, memorisation_suite
from jaxunlearn.sharding import make_mesh

from .letters import SIZE, TOKENIZER, encoded

CONFIG = models.DecoderConfig(
    vocab_size=SIZE + SIZE % 2,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.5,
)
ASKED = [{"question": "what", "choices": ["this", "that", "none"], "answer": at % 3, "task": "a"} for at in range(4)]


def measure(mesh):
    model, params = models.init(CONFIG, jax.random.key(0), mesh=mesh, remat="none")
    suites = [
        memorisation_suite(TOKENIZER, forget=encoded(6, 0), retain=encoded(3, 1), new_tokens=8, max_length=128),
        Choice(choices(ASKED, TOKENIZER, max_length=128)),
    ]
    run = Run(model, params, TOKENIZER, batch_size=8, mesh=mesh)
    return run_suites(suites, run, generate=models.generate, max_length=128)


def test_eight_devices_equal_one():
    alone, spread = measure(None), measure(make_mesh(data=2, fsdp=2, tensor=2))
    assert alone.keys() == spread.keys()
    for name, measured in alone.items():
        assert why_missing(spread[name]) == why_missing(measured), name
        if why_missing(measured) is not None:
            continue
        assert spread[name]["agg_value"] == pytest.approx(measured["agg_value"], rel=1e-4, abs=1e-5), name
        if "interval" in measured:
            assert spread[name]["interval"] == pytest.approx(measured["interval"], rel=1e-3, abs=1e-4), name
    assert alone["forget_el_10"]["n"] > 0
    assert alone["forget_distinct_2"]["value_by_index"] != {}
