"""The real checkpoint and real TOFU questions through the command: a few steps, then the folder loads again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.cli import main
from jaxunlearn.runs.record import FILE
from jaxunlearn.runs.settings import Devices


@pytest.mark.slow
def test_five_steps_on_the_real_model(stories260k, tofu, tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    rows = {"forget": data.read(tofu / "forget01.json")[:8], "retain": data.read(tofu / "retain99.json")[:16]}
    for name, records in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(dict(one.raw)) + "\n" for one in records))
    out = tmp_path / "forgotten"
    argv = ["unlearn", "--model", str(stories260k), "--forget", str(tmp_path / "forget.jsonl")]
    argv += ["--retain", str(tmp_path / "retain.jsonl"), "--out", str(out), "--steps", "5", "--substitutes", "4"]
    assert main([*argv, "--option", "cg_steps=3", "--retain-size", "16"]) == 0
    found = json.loads((out / FILE).read_text())
    history = found["history"]
    assert len(history) == 5
    assert found["counterfactual_coverage"] > 0.5
    assert history[-1]["objective"] < history[0]["objective"]
    assert max(step["retain_kl"] for step in history) < 2.05e-3
    (_, before), (_, after) = models.load(stories260k), models.load(out)
    assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
    assert not np.array_equal(before["embed_tokens"]["embedding"], after["embed_tokens"]["embedding"])
    assert (out / "tokenizer.json").read_bytes() == (stories260k / "tokenizer.json").read_bytes()
