"""Unlearning with weights frozen in few bits, from the command line to the folder it leaves."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxunlearn import models
from jaxunlearn.cli import main
from jaxunlearn.runs.settings import Devices

RANK = 2


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_learn_beside_frozen_weights_and_are_added_to_the_original_ones(bits, world, tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    before = {file: file.read_bytes() for file in Path(world.model).iterdir()}
    used, load = [], models.load

    def watched(*args, **options):
        model, params = load(*args, **options)
        used.append({leaf.dtype.name for leaf in jax.tree.leaves(params)})
        return model, params

    monkeypatch.setattr(models, "load", watched)
    out = tmp_path / "forgotten"
    argv = ["unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    argv += ["--method", "grad_ascent", "--option", "learning_rate=1e-2", "--steps", "2", "--batch-size", "4"]
    argv += ["--retain-size", "4", "--stop-at-nll", "1e9"]
    argv += ["--lora-rank", str(RANK), "--lora-targets", "up_proj", "--freeze-bits", str(bits)]
    assert main(argv) == 0
    assert used == [{"float32", {8: "int8", 4: "uint8"}[bits]}]
    assert {file: file.read_bytes() for file in Path(world.model).iterdir()} == before
    old, new = (load_file(f"{folder}/model.safetensors") for folder in (world.model, out))
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        change = tensor.astype(np.float64) - old[name]
        assert tensor.dtype == old[name].dtype
        if "up_proj" in name:
            assert 0 < np.linalg.matrix_rank(change, tol=1e-5 * np.abs(tensor).max()) <= RANK
        else:
            assert not change.any()
    model, params = load(out)
    assert np.isfinite(model.logits(params, np.array([[1, 2, 3]]))).all()
