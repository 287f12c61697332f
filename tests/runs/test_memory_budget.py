"""`--memory-budget`: the first form that fits is found with few compilations, and changes no result."""

import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jaxunlearn.methods import CATALOGUE
from jaxunlearn.runs import budget
from jaxunlearn.runs.budget import Form, first_within, forms_of, method_in
from jaxunlearn.runs.prepared import prepare
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.runs.unlearn import unlearn
from jaxunlearn.sharding import make_mesh


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
        with pytest.raises(ValueError, match=r"--memory-budget 1kB: the leanest step .* train less"):
            first_within(limit, forms, size, "1kB")
        return
    form, total = first_within(limit, forms, size, "1kB")
    assert total == sizes[form.microbatch] <= limit
    assert form.microbatch == 0 or sizes[form.microbatch - 1] > limit
    assert len(asked) <= 3 + np.log2(len(sizes))


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "pdu"])
def test_every_method_can_be_cut(name):
    method = method_in(Unlearn("m", "f", "o", method=name), Form("full", 2, 64))
    assert method.objective.microbatch == 2


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
    with pytest.raises(ValueError, match=r"leanest step \(remat full, 1 examples at a time, 64 rows of logits\)"):
        budget.choose(settings(world, tmp_path / "none", memory_budget="1kB"), ready, mesh, told.append)
    found = [re.search(r"([\d.]+) (K|M)iB a device", line) for line in told]
    whole, leanest = (float(number) * {"K": 1, "M": 1024}[unit] for number, unit in (one.groups() for one in found))
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
