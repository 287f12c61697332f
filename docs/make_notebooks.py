"""Makes the notebooks from `examples/`: same cells (jupytext, percent format), executed, outputs kept.

    python docs/make_notebooks.py              # all
    python docs/make_notebooks.py quick_start  # some

The examples are what is edited; a test compares the cells of both.
"""

import os
import re
import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, NOTEBOOKS = ROOT / "examples", ROOT / "notebooks"
# Compiling takes most of the time of programs so small, and optimising them nearly all of that.
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def main(names: list[str]) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in names or sorted(path.stem for path in EXAMPLES.glob("*.py")):
        notebook, start = jupytext.read(EXAMPLES / f"{name}.py"), time.monotonic()
        NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": NOTEBOOKS}}
        ).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"  # drawn at random otherwise, and a new notebook would differ everywhere
            if cell.cell_type == "code":
                cell.outputs = [output for output in map(_plain, cell.outputs) if output is not None]
        notebook.metadata["language_info"] = {"name": "python"}
        jupytext.write(notebook, NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - start:.0f} s, {(NOTEBOOKS / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


def _plain(output: dict) -> dict | None:
    """An output as it is kept: no warnings of the machine it was made on, no colours of a terminal."""
    if output.get("name") == "stderr":
        return None
    if "text" in output:
        output["text"] = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output["text"])
    return output


if __name__ == "__main__":
    main(sys.argv[1:])
