"""What users install is the wheel: it holds what the package reads at run time and nothing else, and starts from it.

The wheel is built from a copy of the sources, so that leftovers of earlier builds can neither help nor spoil it, and is
installed alone (`--no-deps`) into a folder; processes then see that folder, and the repository is not on their path.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from jaxunlearn.version import __version__

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "jaxunlearn", source / "jaxunlearn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "evals", source / "tests" / "evals", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source, cwd=folder)
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", target, wheel, cwd=target)
    return target


def test_wheel_is_pure_python_named_by_the_version(wheel):
    assert wheel.name == f"jaxunlearn-{__version__}-py3-none-any.whl"


def test_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "jaxunlearn").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert held == {path.relative_to(ROOT).as_posix() for path in package}
    assert {"jaxunlearn/py.typed", *(f"jaxunlearn/reports/page.{kind}" for kind in ("html", "css", "js"))} <= held


def test_metadata_names_the_entry_point_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (about,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert "jaxunlearn = jaxunlearn.cli:main" in archive.read(f"{about}/entry_points.txt").decode()
        metadata = archive.read(f"{about}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: jax<0.12,>=0.10" in metadata


def test_starts_as_a_command_and_as_a_module(installed, tmp_path):
    for command in ((installed / "bin" / "jaxunlearn",), (sys.executable, "-m", "jaxunlearn")):
        said = _run(*command, "--version", cwd=tmp_path, path=installed)
        assert said == f"jaxunlearn {__version__}\n", command


def test_reads_its_own_files_where_it_is_installed(installed, tmp_path):
    code = (
        "import jaxunlearn, jaxunlearn.reports.page as page, pathlib\n"
        "print(jaxunlearn.__file__)\n"
        "print(all(pathlib.Path(page.__file__).with_name(f'page.{kind}').stat().st_size for kind in ('html', 'css')))"
    )
    where, whole = _run(sys.executable, "-c", code, cwd=tmp_path, path=installed).splitlines()
    assert Path(where).is_relative_to(installed)
    assert whole == "True"


def test_citation_is_of_this_version():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert about["version"] == __version__


def _run(*command, cwd: Path, path: Path | None = None) -> str:
    """Standard output; the only place of the package on the path is `path`."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
