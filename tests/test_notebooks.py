"""Notebooks are their examples, executed; examples run as plain scripts; the guides' examples run too."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_is_a_notebook_for_every_example_and_no_other():
    assert EXAMPLES
    assert [path.stem for path in EXAMPLES] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_notebook_has_the_cells_of_its_example_and_was_executed_in_order(example):
    notebook = jupytext.read(ROOT / "notebooks" / f"{example.stem}.ipynb")
    assert cells(notebook) == cells(jupytext.read(example)), "make notebooks"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert str(ROOT) not in text, "a path of the machine that made it"


def test_notebooks_stay_small():
    assert sum(path.stat().st_size for path in (ROOT / "notebooks").glob("*.ipynb")) < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_as_a_script(example, tmp_path):
    """In an empty folder, with the compiler's flags of these tests; the script sets how many devices it wants."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("s in all")
    assert not list(tmp_path.iterdir()), "an example writes nothing"
