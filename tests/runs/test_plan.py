"""Plans: what is compiled from shapes is what a run compiles, and what does not fit is said."""

import json
import math

import jax
import pytest

from jaxunlearn import methods, models, sharding
from jaxunlearn.cli import main
from jaxunlearn.runs import plan as plans
from jaxunlearn.runs.plan import plan
from jaxunlearn.runs.programs import planned, state_of
from jaxunlearn.runs.settings import Plan
from jaxunlearn.unlearn import init


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = models.DecoderConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, max_position_embeddings=32,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("planned")
    (path / "config.json").write_text(json.dumps(config.to_hf().to_dict()))
    return path


def asked(folder, **changed):
    given = {"topology": "cpu:8", "mesh": "fsdp=4,tensor=2", "batch_size": 8, "length": 8, "dtype": "float32"} | changed
    return Plan(model=str(folder), **given)


def test_a_gradient_is_planned_with_its_bytes_products_and_traffic(folder, tmp_path, capsys):
    (found,) = plan(asked(folder, program=("gradient",), out=tmp_path / "plan.md"))
    config = models.read_config(folder)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    specs = models.param_specs(config)
    shards = [sharding.named_sharding(mesh, s.axes, s.shape).shard_shape(s.shape) for s in specs]
    split = 4 * sum(math.prod(shard) for shard in shards)
    tokens = 2 * 4 * 8 * 8 // 4
    assert found.arguments == split + tokens
    assert split <= found.results <= split + 8 * len(specs)  # a pointer to each array may be counted in
    assert found.mesh == {"data": 1, "fsdp": 4, "tensor": 2}
    assert {one.kind for one in found.traffic} <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    # Three products for each weight and token, and the attention scores besides.
    matrices = sum(math.prod(s.shape) for s in specs if len(s.shape) - s.stacked == 2 and "embed_tokens" not in s.path)
    assert 1.0 <= found.flops * 8 / (6 * matrices * 64) < 1.7
    assert (found.fits, found.seconds) == (None, {})
    assert "| gradient |" in (tmp_path / "plan.md").read_text()
    assert "gradient" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["npo", "soul", "gauss_newton_ascent"])
def test_the_planned_state_is_laid_out_like_a_real_one(folder, name):
    config = models.read_config(folder)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    method = methods.CATALOGUE[name].make()
    problem = planned(asked(folder), config, method, mesh)
    _, params = models.init(config, jax.random.key(0), mesh=mesh)
    real = init(method, problem.model, params, key=jax.random.key(0))
    shapes = state_of(problem, method)
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    for ours, theirs in zip(jax.tree.leaves(shapes), jax.tree.leaves(real), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if len(theirs.sharding.device_set) == 8:
            assert ours.sharding.is_equivalent_to(theirs.sharding, theirs.ndim)


def test_chips_that_are_too_small_and_the_smallest_grid_that_fits(folder, monkeypatch, capsys):
    small = plans.parse_topology("cpu:8").chip._replace(memory=9_000, flops=1e9, bandwidth=1e6, interconnect=1e6)
    monkeypatch.setattr(plans, "parse_topology", lambda text: plans.Topology(small, (8,)))
    (found,) = plan(asked(folder, program=("gradient",), mesh="fsdp=-1"))
    assert not found.fits
    assert found.seconds["products"] == found.flops / 1e9
    assert found.seconds["memory"] == (found.arguments + found.results) / 1e6
    shown = capsys.readouterr().out
    assert "too much" in shown
    larger = small._replace(memory=int(1.2 * found.total))
    monkeypatch.setattr(plans, "parse_topology", lambda text: plans.Topology(larger, (8,)))
    plan(asked(folder, program=("gradient",), mesh="fsdp=-1", smallest=True))
    assert "smallest grid that fits gradient: cpu:8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model", "llama-9"], "nor one of llama-3.2-1b"),
        (["--model", "llama-3-8b", "--length", "9000"], "has a context of 8192"),
        (["--model", "llama-3-8b", "--topology", "cpu:4096"], "JAX sees 8 CPU devices"),
        (["--model", "llama-3-8b", "--batch-size", "0"], "--batch-size 0"),
        (["--model", "llama-3-8b", "--method", "npp"], "did you mean npo"),
    ],
)
def test_mistakes_are_named(flags, told, capsys):
    assert main(["plan", "--topology", "cpu:8", *flags]) == 2
    assert told in capsys.readouterr().err
