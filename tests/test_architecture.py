"""Rules that hold for the package as a whole: what importing it costs, what it never calls, what it documents."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn import methods

PACKAGE = Path(jaxunlearn.__file__).parent
README = PACKAGE.parent / "README.md"
HEAVY = ("datasets", "flax", "matplotlib", "orbax", "scipy", "sklearn", "torch", "transformers")
SUBPACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
SOURCES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN = {
    "jax.numpy.vdot": "it flattens its arguments, which gathers sharded leaves; use jaxunlearn.tree.vdot",
    "jax.flatten_util.ravel_pytree": "it gathers every sharded leaf; work leaf by leaf, as in jaxunlearn.tree",
    "jax.config.update": "it changes the settings of the program that imports us; pass dtypes and devices instead",
}


def qualified_names(source: str) -> list[tuple[int, str]]:
    """Every dotted name that code uses or imports, with its line, after undoing `import ... as`.

    Docstrings and comments may talk about a function; only code counts.
    """
    module = ast.parse(source)
    imported, found = {}, []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            imported |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found += [(node.lineno, f"{node.module}.{a.name}") for a in node.names]
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            found.append((node.lineno, f"{imported.get(head, head)}.{rest}"))
    return found


def violations(source: str) -> list[str]:
    return [f"line {line}: {name}: {FORBIDDEN[name]}" for line, name in qualified_names(source) if name in FORBIDDEN]


@pytest.mark.parametrize(
    "code",
    [
        "import jax.numpy as jnp\njnp.vdot(x, y)",
        "import jax\njax.numpy.vdot(x, y)",
        "from jax import numpy as xp\njax.tree.map(xp.vdot, x, y)",
        "from jax.flatten_util import ravel_pytree as flatten",
        "import jax\njax.flatten_util.ravel_pytree(x)",
        "import jax\njax.config.update('jax_enable_x64', True)",
    ],
)
def test_the_search_finds_every_spelling(code):
    assert len(violations(code)) == 1


def test_the_search_passes_over_prose_and_our_own_functions():
    assert violations('"""Never jnp.vdot(x, y)."""\nfrom jaxunlearn import tree\ntree.vdot(x, y)  # jnp.vdot') == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source_file_keeps_the_house_rules(path):
    source = path.read_text(encoding="utf-8")
    assert violations(source) == []
    assert ast.get_docstring(ast.parse(source)) or path.name == "version.py", "say in a docstring what the file is for"


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("what", ["jaxunlearn", *(f"jaxunlearn.{name}" for name in SUBPACKAGES)])
def test_importing_loads_nothing_heavy(what):
    loaded = modules_after(f"import {what}")
    assert "jaxunlearn" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_everything_public_is_documented(name):
    package = importlib.import_module(f"jaxunlearn.{name}")
    undocumented = []
    for public in getattr(package, "__all__", ()):
        thing = getattr(package, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            doc = inspect.getdoc(thing) or ""
            # dataclass and NamedTuple write `Name(field, ...)` where nobody wrote anything.
            if not doc or doc.startswith(f"{public}("):
                undocumented.append(public)
    assert undocumented == []


def test_every_method_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    assert [name for name in methods.CATALOGUE if name not in text] == []
