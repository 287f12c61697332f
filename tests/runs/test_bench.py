"""Measured products: what is counted, what is called when, and what is said. Times themselves are never asserted."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.cli import main
from jaxunlearn.runs import bench as benches
from jaxunlearn.runs.settings import Devices
from jaxunlearn.runs.throughput import SIZES, config_of, samples
from jaxunlearn.types import Model

D, B, T = 4, 2, 8
V = SIZES["1M"]["vocab_size"]
MODEL = Model(logits=lambda p, tokens: jnp.tanh(p["table"][tokens]) @ p["head"])


def test_calls_are_interleaved_and_timed_by_the_clock():
    """Each once a round, whatever the others take; the clock is read before and after."""
    called, ticks = [], iter(range(100))
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    rounds = []
    found = samples(runs, 3, clock=lambda: next(ticks), advance=lambda: rounds.append(len(called)))
    assert called == list("ababab")
    assert found == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert rounds == [2, 4, 6]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_parameters_they_say(size):
    count = sum(int(np.prod(spec.shape)) for spec in models.param_specs(config_of(size, 256)))
    said = float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]]
    assert count == pytest.approx(said, rel=0.15)


def test_the_command_counts_products_and_writes_every_round(tmp_path, monkeypatch, capsys):
    """A model whose products can be counted by hand; K-FAC, which it has no factors for, is a row that says so."""
    params = {"table": jnp.ones((V, D)), "head": jnp.ones((D, V))}
    monkeypatch.setattr(models, "init", lambda *_, **__: (MODEL, params))
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    monkeypatch.setattr(benches, "ceiling", lambda dtype: 1e9)
    monkeypatch.setenv("COLUMNS", "200")
    argv = ["bench", "--size", "1M", "--batch-size", str(B), "--length", str(T), "--rounds", "3"]
    argv += ["--curvature", "gauss-newton", "--curvature", "kfac"]
    assert main([*argv, "--out", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["gradient", "Gauss-Newton", "Gauss-Newton, each of 10 in a loop", "K-FAC factors"]
    forward = 2 * B * T * D * V
    assert rows["gradient"]["flops"] == 3 * forward  # forward, and backward into either factor
    # Of the body a table look-up: forward, its tangent in both factors, and backward into both.
    assert rows["Gauss-Newton"]["flops"] == pytest.approx(5 * forward, rel=0.25)
    assert rows["Gauss-Newton, each of 10 in a loop"]["flops"] <= rows["Gauss-Newton"]["flops"]
    for name in list(rows)[:3]:
        assert len(found["seconds"][name]) == 3
        each = 10 if "each of" in name else 1
        assert rows[name]["seconds"] == pytest.approx(np.median(found["seconds"][name]) / each)
    assert rows["K-FAC factors"]["seconds"] is None
    assert rows["K-FAC factors"]["error"]
    assert (found["parameters"], found["tokens"], found["ceiling_flops"]) == (2 * D * V, B * T, 1e9)
    shown = capsys.readouterr().out
    assert "times the floor" in shown
    assert "fails: " in shown
    assert main([*argv, "--out", str(tmp_path / "bench.json")]) == 2
    assert "nothing of yours is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--length", "65"], "has a context of 64"), (["--rounds", "0"], "--rounds 0"), (["--length", "1"], "--length 1")],
)
def test_mistakes_are_named(world, flags, told, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were read"))
    assert main(["bench", "--model", world.model, *flags]) == 2
    assert told in capsys.readouterr().err
