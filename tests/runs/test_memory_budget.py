"""`--memory-budget`: the first form that fits is found with few compilations, and changes no result."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lives import BIGRAM, KEPT, table
from safetensors.numpy import load_file

from jaxunlearn import models
from jaxunlearn.evals import score
from jaxunlearn.methods import CATALOGUE
from jaxunlearn.runs import budget
from jaxunlearn.runs.budget import Form, first_within, forms_of, kept_beside, method_in
from jaxunlearn.runs.evaluate import evaluate
from jaxunlearn.runs.finetune import finetune
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.prepared import prepare
from jaxunlearn.runs.settings import Devices, Evaluate, Finetune, Private, Unlearn, Watching
from jaxunlearn.runs.unlearn import unlearn
from jaxunlearn.sharding import make_mesh

score_module, write = sys.modules[score.__module__], models.generate


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_forms_cut_both_batches_evenly_and_become_leaner(forget, retain, devices):
    forms = forms_of(forget, retain, devices)
    assert forms[0] == Form()
    for form in forms:
        size = form.microbatch
        assert size is None or all(size >= n or n % size == 0 for n in (forget, retain))
        assert size is None or size % devices == 0
    sizes = [form.microbatch or max(forget, retain) for form in forms]
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=60, unique=True), st.integers(1, 1000))
def test_the_first_that_fits_is_found_by_bisection(sizes, limit):
    sizes = sorted(sizes, reverse=True)
    forms, asked = [Form(microbatch=i) for i in range(len(sizes))], []

    def size(form):
        asked.append(form)
        return sizes[form.microbatch]

    if sizes[-1] > limit:
        with pytest.raises(ValueError, match=r"--memory-budget 1kB: the leanest form .* least that, train less"):
            first_within(limit, forms, size, "1kB", "train less")
        return
    form, total = first_within(limit, forms, size, "1kB", "train less")
    assert total == sizes[form.microbatch] <= limit
    assert form.microbatch == 0 or sizes[form.microbatch - 1] > limit
    assert len(asked) <= 3 + np.log2(len(sizes))


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "pdu"])
def test_every_method_can_be_cut(name):
    method = method_in(Unlearn("m", "f", "o", method=name), Form("full", 2, 64))
    assert method.objective.microbatch == 2


def test_parameters_of_the_best_look_are_counted_where_rules_keep_them():
    sharded = table(make_mesh(fsdp=8))
    assert kept_beside(Watching(evaluate_every=3), sharded) == 0
    for rules in ({"stop_when": ("jang",)}, {"keep_while": ("retain_nll<=1",)}):
        assert kept_beside(Watching(**rules), sharded) == sharded.size * 4 // 8


def kibibytes(told):
    """Sizes of the forms that were tried."""
    found = re.findall(r": ([\d.]+) (K|M)iB a device", " ".join(told.split()))
    return [float(number) * {"K": 1, "M": 1024}[unit] for number, unit in found]


def settings(world, out, **more):
    return Unlearn(
        world.model, world.forget, out, retain=world.retain, method="grad_diff", option=("learning_rate=1e-3",),
        steps=1, batch_size=3, retain_size=6, stop_at_nll=50.0, **more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_within_a_budget_forgets_the_same(world, tmp_path, monkeypatch, capsys):
    forms = [Form(), Form("full", 1, 64)]
    monkeypatch.setattr(budget, "forms_of", lambda *_: forms)
    ready, mesh, told = prepare(settings(world, tmp_path / "none")), make_mesh(devices=jax.devices()[:1]), []
    with pytest.raises(ValueError, match=r"leanest form \(remat full, 1 examples at a time, 64 rows of logits\)"):
        budget.choose(settings(world, tmp_path / "none", memory_budget="1kB"), ready, mesh, told.append)
    whole, leanest = kibibytes("\n".join(told))
    assert leanest < 0.7 * whole
    monkeypatch.setattr(budget, "choose", lambda *_: (Form("full", 1, 64), 1))
    for name, more in (("whole", {}), ("cut", {"memory_budget": "1MiB"})):
        unlearn(settings(world, tmp_path / name, **more))
    assert "within 1MiB a device: remat full, 1 examples at a time" in " ".join(capsys.readouterr().out.split())
    record = json.loads((tmp_path / "cut" / "jaxunlearn.json").read_text())
    assert record["form"] == {"remat": "full", "microbatch": 1, "head_rows": 64}
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    before = load_file(f"{world.model}/model.safetensors")
    assert any(not np.array_equal(value, before[name]) for name, value in theirs.items())
    for name, value in theirs.items():
        # AdamW's first step is the rate times the sign of the gradient, whatever its size: rounding decides at zero.
        close = np.isclose(ours[name], value, atol=1e-6)
        assert close.mean() > 0.99, name


def test_training_in_parts_is_training():
    """The gradient of a mean, from sums over parts that are then divided: rows of unequal length."""
    whole, cut = (
        fit(BIGRAM, table(), KEPT[:16], epochs=2, batch_size=8, learning_rate=1e-2, microbatch=size)
        for size in (None, 2)
    )
    np.testing.assert_allclose(cut.params, whole.params, atol=1e-5)
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-5)


@pytest.mark.slow
def test_a_training_within_a_budget_is_the_same(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budget, "forms_of", lambda *_: [Form(), Form("full", 1, 64)])
    monkeypatch.setattr(Devices, "make_mesh", lambda self, alone=False: make_mesh(devices=jax.devices()[:1]))
    asked = {"epochs": 2, "batch_size": 3, "learning_rate": 1e-3}
    settings = Finetune(world.model, (world.forget,), tmp_path / "cut", **asked)
    with pytest.raises(
        ValueError, match=r"--memory-budget 1kB: the leanest form \(remat full, 1 examples.*--batch-size"
    ):
        finetune(replace(settings, memory_budget="1kB"))
    whole, leanest = kibibytes(capsys.readouterr().out)
    assert leanest < 0.9 * whole
    finetune(replace(settings, memory_budget=f"{(whole + leanest) / 2:.0f}KiB"))
    assert "KiB a device: remat full, 1 examples at a time, 64 rows of logits" in " ".join(
        capsys.readouterr().out.split()
    )
    finetune(replace(settings, out=tmp_path / "whole"))
    assert json.loads((tmp_path / "cut" / "jaxunlearn.json").read_text())["form"]["microbatch"] == 1
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    for name, value in theirs.items():
        close = np.isclose(ours[name], value, atol=1e-5)
        assert close.mean() > 0.99, name
    private = Private(noise_multiplier=1.0, private_delta=1e-3)
    with pytest.raises(ValueError, match="ruled by --private-rows"):
        finetune(replace(settings, out=tmp_path / "p", memory_budget="1GiB", private=private))


@pytest.mark.slow
def test_an_evaluation_within_a_budget_measures_the_same(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Devices, "make_mesh", lambda self, alone=False: make_mesh(devices=jax.devices()[:1]))
    model = Path(world.model)
    settings = Evaluate(model, forget=world.forget, reference_model=model, generate=True, new_tokens=3, batch_size=4)
    with pytest.raises(ValueError, match=r"--memory-budget 1kB: the leanest form \(1\) takes"):
        evaluate(replace(settings, memory_budget="1kB"))
    whole, leanest = kibibytes(capsys.readouterr().out)
    assert leanest < whole
    asked, batches = [], []
    monkeypatch.setattr(models, "generate", lambda *a, batch_size=None, **k: asked.append(batch_size) or write(*a, **k))
    real = score_module.batch_scores
    monkeypatch.setattr(score_module, "batch_scores", lambda m, p, b: batches.append(len(b.tokens)) or real(m, p, b))
    within = evaluate(replace(settings, memory_budget=f"{leanest + 1:.0f}KiB", out=tmp_path / "within.json"))
    told = re.search(r"a device: 1 scored and (\d) written at once", capsys.readouterr().out)
    assert set(asked) == {int(told[1])}
    assert set(batches) == {1}
    whole = evaluate(settings)
    assert max(batches) == 4
    for column, measured in whole.items():
        for name, value in measured.items():
            found = within[column][name]["agg_value"]
            assert found == (None if value["agg_value"] is None else pytest.approx(value["agg_value"], abs=1e-5)), name
