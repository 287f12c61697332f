"""Every recipe runs as far as it goes without its model: options, data, and the step traced, on a small decoder."""

import json
import re
import types
from pathlib import Path

import jax
import pytest
import yaml

from jaxunlearn import data, models
from jaxunlearn.cli import main
from jaxunlearn.methods import CATALOGUE
from jaxunlearn.runs import needs

HOME = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.relative_to(HOME).with_suffix("").as_posix() for path in HOME.glob("*/*.yaml"))
FAMILIES = ("second order", "second order, noise", "noise", "one-shot edit")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """As deep as the layers that recipes name, with the context they ask for; and the three sets."""
    home = tmp_path_factory.mktemp("recipes")
    rows = data.corpus(seed=5, people=80, facts=4, holdout=2)
    tokenizer = data.train_tokenizer(data.training_texts(rows), vocab_size=512)
    config = models.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=8,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    models.save(home / "model", *models.init(config, jax.random.key(0)), tokenizer=tokenizer)
    for name in ("forget", "retain", "holdout"):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in getattr(rows, name)))
    return home


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Tracing finds what is wrong with a recipe; what compilers then make of it is tested where it is written."""

    def trace(work, mesh, machine, advance):
        for one in work:
            function, arguments, _ = one.program
            jax.eval_shape(function, *arguments)
        none = dict.fromkeys(("arguments", "results", "temporaries", "total", "flops"), 0)
        return [types.SimpleNamespace(program=one.name, memory=1, seconds={"products": 0.0}, **none) for one in work]

    monkeypatch.setattr(needs, "estimates", trace)
    monkeypatch.setattr(needs, "ceiling", lambda dtype: 1e9)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from_and_runs(name, small, tmp_path, capsys):
    path = HOME / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    comments = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    command = re.match(rf"jaxunlearn (\w+) --config recipes/{name}\.yaml( --\w+ [\w.]+)* --out NEW-FOLDER ", comments)
    assert re.search(r"Source: .*(19|20)\d\d|Source: .*(arXiv|github)", comments)
    assert re.search(r"Changed: .{20}", comments)
    sets = ("data",) if command[1] == "finetune" else ("forget", "retain", "holdout")
    options = yaml.safe_load(text)
    sets = [name for name in sets if name in options or f"--{name}" in command[0]]
    given = [part for name in sets for part in (f"--{name}", str(small / f"{name}.jsonl".replace("data", "retain")))]
    argv = [command[1], "--config", str(path), "--model", str(small / "model"), *given, "--out", str(tmp_path / "out")]
    assert main([*argv, "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "nothing was written" in shown
    assert f"{options.get('steps', options.get('epochs', ''))}" in shown
    assert not (tmp_path / "out").exists()


def test_every_second_order_method_has_a_recipe_and_the_list_is_whole():
    assert {name for name, entry in CATALOGUE.items() if entry.family in FAMILIES} <= {
        Path(name).name for name in RECIPES
    }
    listed = set(re.findall(r"\]\(([\w/.-]+)\.yaml\)", (HOME / "README.md").read_text(encoding="utf-8")))
    assert listed == set(RECIPES)
