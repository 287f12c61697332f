"""Every family computes what torch transformers computes, to every order, and goes back to it unchanged.

One table of tiny models with every switch at a value that matters; `benchmarks/families.py`, which measures the support
matrix of the README, measures here too.
"""

import json

import pytest
import torch
import transformers
from families import (
    FORMS,
    HEAD,
    MARKERS,
    README,
    derivatives,
    forms,
    greedy,
    label,
    left_padded,
    low_rank_step,
    round_trip,
)
from family_models import FAMILIES, built

# Those whose parameters are not laid out like another's.
LAID_OUT = ("llama", "qwen2", "phi", "phi3", "gemma2", "olmo2", "gpt_neox", "opt, norms of the stream")


@pytest.fixture(scope="module", autouse=True)
def _quick_and_quiet():
    """Threads cost models of this size more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return built(request.param, tmp_path_factory.mktemp("family") / "torch")


def test_logits_gradients_and_curvature_are_those_of_torch(family, tmp_path):
    found = derivatives(family, tmp_path / "gradient")
    print(family.torch.config.model_type, found)
    assert found.logits < 1e-4
    assert found.gradient < 1e-4 < 0.01 * found.largest_gradient
    assert found.product < 0.01


def test_logits_after_prompts_padded_on_the_left_are_those_of_torch(family):
    assert left_padded(family) < 1e-4


@pytest.mark.parametrize("case", FAMILIES)
def test_tied_or_not_in_one_file_or_many_of_any_dtype_it_loads_and_is_saved_as_it_was(case, tmp_path):
    found = forms(case, tmp_path)
    assert len(found) == len(FORMS)
    assert max(found.values()) < 1e-4, found


def test_saved_in_several_files_it_is_the_same_to_torch(family, tmp_path):
    assert round_trip(family, tmp_path / "saved") == (0.0, 0.0)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (family.folder, tmp_path / "saved"))
    assert ours == theirs
    assert "model.safetensors.index.json" in {file.name for file in (tmp_path / "saved").iterdir()}


def test_greedy_text_of_a_left_padded_batch_is_that_of_torch(family):
    ours, theirs = greedy(family)
    assert ours == theirs


@pytest.mark.parametrize("family", LAID_OUT, indirect=True)
def test_adapters_change_nothing_and_learn_on_eight_devices(family):
    changed, before, after = low_rank_step(family)
    assert changed < 1e-4
    assert after < before


def test_the_support_matrix_of_the_readme_has_every_family_and_nothing_that_fails():
    """Its last digits depend on the machine, so it is held against what the tests above assert."""
    matrix = README.read_text(encoding="utf-8").split(MARKERS[0])[1].split(MARKERS[1])[0].strip().splitlines()
    assert tuple(matrix[:2]) == HEAD
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in matrix[2:]]
    assert [name for name, *_ in rows] == [label(case) for case in FAMILIES]
    for _, stored, logits, gradient, product, step, saved, tokens in rows:
        assert stored == f"{len(FORMS)} of {len(FORMS)}"
        assert max(float(logits), float(gradient)) < 1e-4
        assert float(product) < 0.01
        before, after = map(float, step.split(" to "))
        assert after < before
        assert saved == "0"
        assert tokens == "192 of 192"
