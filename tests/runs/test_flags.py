"""What is wrong with a value is said of the flag that it came from, in whatever part of the library it is found."""

import pytest

from jaxunlearn.cli import main
from jaxunlearn.models import reading
from jaxunlearn.models.saving import byte_size
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.sharding import mesh_sizes

VALUES = {  # command: flags, each with values that are none, and what else is to be given
    "finetune": [
        ("--max-shard-size", "5XB"),
        ("--memory-budget", "5XB"),
        ("--weight-decay", "-1"),
        ("--stop-at-loss", "nan"),
        ("--question-template", "{prompt}"),
        ("--mesh", "foo=2"),
        ("--stop-when", "zz<=1"),
        ("--keep-while", "zz<=1"),
    ],
    "unlearn": [
        ("--max-shard-size", "5XB"),
        ("--option", "beta=-1", "--method", "npo"),
        ("--lora-alpha", "0", "--lora-rank", "2"),
        ("--lora-targets", "nowhere", "--lora-rank", "2"),
        ("--stop-at-nll", "nan"),
        ("--stop-when", "nonsense"),
    ],
    "curvature": [("--only", "nowhere*"), ("--temperature", "nan")],
    "evaluate": [("--reference-model", "nowhere"), ("--before-model", "nowhere"), ("--more-model", "nowhere")],
    "attack": [("--only", "nowhere"), ("--reference-model", "nowhere"), ("--general-model", "nowhere")],
    "canary insert": [("--template", "nothing to fill"), ("--count", "0"), ("--copies", "0")],
    "spectrum": [("--option", "damping=-1")],
    "bench": [("--mesh", "fsdp=x", "--size", "1M")],
}


@pytest.fixture
def given(world, tmp_path):
    """What each command needs besides."""
    model, sets = ["--model", world.model], ["--forget", world.forget, "--retain", world.retain]
    one, out, dry = ["--data", world.retain], ["--out", str(tmp_path / "out")], ["--dry-run"]
    return {
        "finetune": [*model, *one, *out, *dry],
        "unlearn": [*model, *sets, *out, *dry],
        "curvature": [*model, *one, *out, *dry],
        "evaluate": [*model, *sets, *dry],
        "attack": [*model, *sets, *dry],
        "canary insert": [*one, *out, "--key", str(tmp_path / "key"), "--template", "a {digits:3}"],
        "spectrum": [*model, *sets, *out, *dry],
        "bench": dry,
    }


@pytest.mark.parametrize(("command", "mistake"), [(name, one) for name, some in VALUES.items() for one in some])
def test_the_flag_is_named(command, mistake, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading, "stream", lambda *_, **__: pytest.fail("weights were read"))
    (flag, _), usual = mistake[:2], given[command]
    if flag in usual:
        place = usual.index(flag)
        usual = usual[:place] + usual[place + 2 :]
    assert main([*command.split(), *usual, *mistake]) == 2
    said = capsys.readouterr().err
    assert said.partition(": ")[2].startswith(flag)
    assert not list(tmp_path.iterdir())


def test_a_call_in_python_names_its_argument():
    with pytest.raises(ValueError, match=r"^max_shard_size='5XB': give bytes"):
        byte_size("5XB")
    with pytest.raises(ValueError, match=r"^mesh 'foo=2': "):
        mesh_sizes("foo=2", 4)


def test_an_error_of_another_library_stays_what_it_is():
    class ForeignError(ValueError):
        pass

    with pytest.raises(ForeignError, match="^x$"), of_flag("--x"):
        raise ForeignError("x")
