"""A run whose numbers are not finite says so and saves nothing."""

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import models
from jaxunlearn.cli import main
from jaxunlearn.runs.settings import Devices


@pytest.fixture
def broken(world, tmp_path, monkeypatch):
    """A checkpoint whose weights are finite and whose answers are not; on one device, so that it compiles quickly."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    model, params = models.load(world.model)
    huge = jax.tree.map(lambda x: jnp.sign(x) * 1e30, params)
    models.save(tmp_path / "broken", model, huge, tokenizer=world.tokenizer)
    return str(tmp_path / "broken")


def test_unlearning_without_one_finite_step_saves_nothing(world, broken, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["unlearn", "--model", broken, "--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    assert main([*argv, "--method", "grad_ascent", "--steps", "1", "--stop-at-nll", "9"]) == 2
    assert "no step of grad_ascent was finite" in capsys.readouterr().err
    assert not out.exists()


def test_diverged_training_saves_nothing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    out = tmp_path / "out"
    argv = ["finetune", "--model", world.model, "--data", world.forget, "--out", str(out), "--epochs", "20"]
    assert main([*argv, "--learning-rate", "3e38"]) == 2
    assert "training diverged" in capsys.readouterr().err
    assert not out.exists()
