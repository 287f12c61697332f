"""`jaxunlearn doctor` on this machine, and on machines where something is wrong."""

from importlib.metadata import version as real_version

import jax
import pytest

from jaxunlearn.cli import main
from jaxunlearn.runs import doctor


def test_nothing_is_wrong_here_and_the_product_is_checked(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("jaxunlearn", "jax", "flax", "devices", "free disk", "products"):
        assert f"✓ {name} " in shown
    error = float(shown.partition("is within ")[2].split()[0])
    assert 0 < error < 1e-2  # the finite difference is not the product itself


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda m: m.setattr(doctor, "version", lambda name: "0.0.1" if name == "optax" else real_version(name)),
         "jaxunlearn needs optax>="),
        (lambda m: m.setattr(doctor.shutil, "disk_usage", lambda path: type("", (), {"free": 2**30})()),
         "less than 10 GiB"),
        (lambda m: m.setenv("JAX_DISABLE_JIT", "1"), "unset JAX_DISABLE_JIT"),
    ],
    ids=["version", "disk", "jit"],
)  # fmt: skip
def test_what_is_wrong_is_named_and_ends_with_code_1(broken, told, monkeypatch, capsys):
    broken(monkeypatch)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--check", "False"])
    assert end.value.code == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert told in shown
    assert "products" not in shown.replace("matrix products", "")
    assert not jax.config.jax_enable_x64  # nothing was changed
