"""docs/guides/mistakes.md says what each mistake is answered with: each is made here, and the answer is that one."""

import re
import shutil
from pathlib import Path

import pytest

from jaxunlearn.cli import main
from jaxunlearn.models import reading

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "mistakes.md"
CELLS = [line.strip("| \n").split(" | ", 1) for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
TOLD = dict(CELLS[2:])
USUAL = {"model": "base", "forget": "forget.jsonl", "retain": "retain.jsonl", "out": "forgotten"}
MADE = {  # the mistake as the page names it: what is given instead of the usual
    "`jaxunlearn unlern`": None,
    "`--method nop`": {"method": "nop"},
    "`--option dampng=0.1`": {"option": "dampng=0.1"},
    "`--forget forgett.jsonl`": {"forget": "forgett.jsonl"},
    "a line of the file is cut off": {"forget": "bad.jsonl"},
    "`--retain forget.jsonl`, the same records in both": {"retain": "forget.jsonl"},
    "no `--retain`": {"retain": None},
    "`--out` names a folder with something in it": {"out": "exists"},
    "the checkpoint has pickled weights": {"model": "pickled"},
    "`metod: npo` in a file given by `--config`": {"config": "typo.yaml"},
}


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """The folder that the page speaks of; nothing in it is read but what leads to the message."""
    (tmp_path / "base").symlink_to(world.model)
    for name in ("forget", "retain"):
        shutil.copy(getattr(world, name), tmp_path)
    (tmp_path / "bad.jsonl").write_bytes((tmp_path / "forget.jsonl").read_bytes()[:60])
    (tmp_path / "typo.yaml").write_text("metod: npo\n")
    (tmp_path / "exists").mkdir()
    (tmp_path / "exists" / "mine.txt").touch()
    shutil.copytree(world.model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "stream", lambda *_, **__: pytest.fail("weights were read"))


def test_all_ten_are_made():
    assert list(TOLD) == list(MADE)
    assert len(TOLD) == 10


@pytest.mark.parametrize("mistake", MADE)
def test_the_answer_is_the_one_on_the_page(mistake, home, capsys):
    given = MADE[mistake]
    changed = {} if given is None else USUAL | given
    argv = [part for name, value in changed.items() if value is not None for part in (f"--{name}", value)]
    assert main(["unlern" if given is None else "unlearn", *argv]) == 2
    said = " ".join(capsys.readouterr().err.split()).partition(": ")[2]
    parts = TOLD[mistake].split("...")
    assert re.fullmatch(".+".join(map(re.escape, parts)), said), said
    assert not Path("forgotten").exists()
