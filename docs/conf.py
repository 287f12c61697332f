"""Sphinx settings. `make docs` builds into `docs/_build`; a warning is an error.

The API reference is made of the packages' own `__all__` and docstrings: one page a package, written into `docs/api`
(ignored by git) before each build. Docstrings are plain text with equations indented, which reStructuredText takes for
quotations; `_as_literal_blocks` marks them as what they are.
"""

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jaxunlearn.version import __version__  # noqa: E402

project, author, release = "jaxunlearn", "The jaxunlearn authors", __version__
copyright = "The jaxunlearn authors, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest", "sphinx.ext.mathjax", "myst_nb"]
html_theme, html_title = "furo", "jaxunlearn"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` executes them and keeps what they print
default_role = "code"
highlight_language = "none"
napoleon_custom_sections = [("Errors", "Raises")]
napoleon_use_ivar = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
# Guides and notebooks lie in different folders of the repository, and notebooks name each other as files.
suppress_warnings = ["myst.xref_missing"]

STEP = ("init", "unlearn_step", "UnlearnState", "StepInfo")
PACKAGES = ("objectives", "curvature", "solvers", "transforms", "methods", "models", "data", "evals", "evals.attacks")
MODULES = ("sharding", "operators", "tree", "losses", "certificate", "types", "private", "accounting")


def setup(app):
    _copy_notebooks()
    _write_reference()
    app.connect("autodoc-process-docstring", _as_literal_blocks, priority=100)
    app.connect("autodoc-process-docstring", _short_types, priority=900)  # after napoleon has written them
    app.connect("autodoc-process-signature", _short_names)


def _copy_notebooks() -> None:
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(path, target)


def _write_reference() -> None:
    target = HERE / "api"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    pages = {"step": _page("jaxunlearn.unlearn", STEP)}
    pages |= {name.replace(".", "_"): _page(f"jaxunlearn.{name}", None) for name in (*PACKAGES, *MODULES)}
    for name, text in pages.items():
        (target / f"{name}.rst").write_text(text, encoding="utf-8")
    listed = "\n".join(f"   {name}" for name in pages)
    head = "API reference\n=============\n\nWhat `import jaxunlearn` offers, package by package.\n\n"
    (target / "index.rst").write_text(f"{head}.. toctree::\n   :maxdepth: 1\n\n{listed}\n", encoding="utf-8")


def _page(module: str, names: tuple[str, ...] | None) -> str:
    """A page of one module: its docstring, then every public name."""
    found = importlib.import_module(module)
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", "   :no-members:", ""]
    for name in names or _public(found):
        value = getattr(found, name)
        kind = "autoclass" if inspect.isclass(value) else "autofunction" if inspect.isroutine(value) else None
        if kind is None or not inspect.getdoc(value):
            continue
        lines += [f".. {kind}:: {module}.{name}"]
        if members := _methods(value) if kind == "autoclass" else []:
            lines += [f"   :members: {', '.join(members)}"]
        lines.append("")
    return "\n".join(lines)


def _public(module) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [k for k, v in vars(module).items() if k[0] != "_" and getattr(v, "__module__", None) == module.__name__]


def _methods(value: type) -> list[str]:
    """Its own documented methods and properties; fields are described in its docstring."""
    kinds = (property, classmethod, staticmethod)
    return [
        name
        for name, member in vars(value).items()
        if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, kinds)) and inspect.getdoc(member)
    ]


SECTION = re.compile(r"^(Args|Arguments|Attributes|Returns|Raises|Errors|Example|Examples|Yields|Note|References):$")


def _as_literal_blocks(app, what, name, obj, options, lines):
    """Indented lines after a blank one are equations, tables or code, unless they belong to a section or a list."""
    out, section, listed, literal = [], False, False, False
    for number, line in enumerate(lines):
        indented = line.startswith(("    ", "  "))
        if line and not indented:
            section, literal = bool(SECTION.match(line)), False
            listed = line.startswith(("* ", "- ")) or bool(re.match(r"\d+\. ", line))
            if listed and number and lines[number - 1] and not lines[number - 1].startswith(("* ", "- ", " ", "1")):
                out.append("")
        starts = indented and not (section or listed or literal) and number and not lines[number - 1]
        if starts:
            out += ["::", ""]
            literal = True
        out.append(line if (literal and indented) or line.lstrip().startswith((">>>", "...")) else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    """Shapes such as [*d, k], sizes such as |R| and plurals such as `Encoded`s mean something else to docutils."""
    line = re.sub(r"(?<=[\[,(])\*(?=\w)|(?<= )\*(?=\w+[\], ])", r"\\*", line)
    line = re.sub(r"`(\{[^`]*:[^`]*\})`", r"``\1``", line)
    line = re.sub(r"(?<!`)\|(\w+)\|(?!`)", r"\\|\1\\|", line)
    return re.sub(r"(?<=[\w)])`(?=[a-z])", r"`\\ ", line)


NAMES = {"jax.jaxlib._jax.Array": "Array", "jaxlib._jax.Array": "Array", "jax._src.mesh.": ""}
HOMES = r"jaxtyping|jaxunlearn(?:\.[a-z_0-9]+)*|collections\.abc|typing|pathlib|numpy"
PREFIX = re.compile(rf"~?\b(?:{HOMES})\.(?=[A-Za-z])")


def _short_names(app, what, name, obj, options, signature, returned):
    """`Float[Array, 'B T']` and not where it is defined."""
    return tuple(None if text is None else _short(text) for text in (signature, returned))


def _short_types(app, what, name, obj, options, lines):
    lines[:] = [_short(line) if line.startswith((":vartype", ":type")) else line for line in lines]


def _short(text: str) -> str:
    for long, short in NAMES.items():
        text = text.replace(long, short)
    return PREFIX.sub("", text)
