"""`--dry-run` checks what a run checks, counts what a run does, reads no weight and writes nothing."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import methods, models
from jaxunlearn.cli import main
from jaxunlearn.curvature import GaussNewton
from jaxunlearn.data import pair
from jaxunlearn.models import reading
from jaxunlearn.runs import demo, needs
from jaxunlearn.runs.headers import Checkpoint
from jaxunlearn.runs.needs import Work
from jaxunlearn.runs.programs import problem_of, state_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Devices
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG
from jaxunlearn.types import TokenBatch
from jaxunlearn.unlearn import init


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(reading, "stream", refuse)


@pytest.fixture
def at_once(monkeypatch):
    """What is to be compiled, without the compilation, which has a test of its own."""
    asked = []

    def recorded(work, mesh, reporter):
        asked.extend(work)
        return {"memory": "of the test"}

    for module in ("dry_run", "dry_run_scoring", "dry_run_own"):
        monkeypatch.setattr(f"jaxunlearn.runs.{module}.needs", recorded)
    return asked


def told(capsys, *argv):
    """The rows that a command shows."""
    assert main([str(part) for part in argv]) == 0
    shown = capsys.readouterr().out
    assert "no weight was read, nothing was written" in shown
    return {row[0]: row[1] for row in (line.split(None, 1) for line in shown.splitlines()) if len(row) == 2}


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_unlearn_is_told_whole_and_leaves_nothing(world, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    rows = told(
        capsys, "unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--out", out,
        "--method", "grad_diff", "--stop-at-nll", "5", "--steps", "7", "--batch-size", "2", "--dry-run",
    )  # fmt: skip
    assert files(tmp_path) == set()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(_shapes(world)))
    assert rows["model"].startswith(f"llama, 2 layers, {size // 4:,} parameters in float32, {size / 1024:.2f} KiB")
    forget, retain = len(world.rows.forget), len(world.rows.retain)
    assert rows["forget"].startswith(f"{forget} records, ")
    assert rows["retain"].startswith(f"{retain} records, ")
    assert rows["method"].startswith(f"grad_diff: at most 7 steps of 2 forget and {retain} retain records, 32")
    assert rows["stops"].startswith("at a forget loss of 5.0 nats per token, or after 7 steps")
    assert "fits" in rows["memory"]
    assert re.search(r"a step: 7 x \S+ FLOPs", " ".join(rows["time"].split()))


def test_a_streamed_step_is_told_by_its_product(world, tmp_path, capsys, at_once):
    """As often as there are batches in all products, beside the vectors of the solve."""
    rows = told(
        capsys, "unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain,
        "--out", tmp_path / "out", "--method", "newton_removal", "--stream-retain", "--retain-size", "4", "--dry-run",
    )  # fmt: skip
    retain = len(world.rows.retain)
    assert rows["method"].startswith(
        f"newton_removal: one step, of at most 20 products that each pass over all {retain} retain records, 4 at a time"
    )
    assert [one.times for one in at_once] == [20 * -(-retain // 4)]
    whole = 4 * 4 * sum(leaf.size for leaf in _shapes(world))  # x, r, p of the solver, and the right-hand side
    assert whole / jax.device_count() <= at_once[0].held < whole / 2
    program, arguments, _ = at_once[0].program
    total, count, _ = jax.eval_shape(program, *arguments)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((total, count))] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments[:2])
    ]
    assert files(tmp_path) == set()


def _shapes(world):
    found = Checkpoint.read(world.model)
    return [
        jnp.zeros(spec.shape, found.dtypes(spec)) for spec in models.param_specs(found.config)
    ]  # what `models.load` would give


def test_a_step_is_compiled_from_headers_as_from_weights(world, encoded):
    """Same arguments, byte by byte: state, batch and what the method reads."""
    method = methods.grad_diff()
    mesh = make_mesh(devices=jax.devices()[:1])
    found = Checkpoint.read(world.model)
    batch = next(pair(encoded.forget, encoded.retain, 2, retain_size=3)).batch
    problem = problem_of(found.config, method, mesh, batch, dtypes=found.dtypes)
    shapes = state_of(problem, method), problem.batch
    real = init(method, encoded.model, encoded.params, key=jax.random.key(0)), jax.tree.map(jnp.asarray, batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, real)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("memory", [1, None, 2**40])
def test_whether_a_program_fits_is_said(world, encoded, memory, monkeypatch):
    device = jax.devices()[0]
    chip = needs.Topology(needs.Chip("toy", memory, 1e9, None, None), (1,))
    monkeypatch.setattr(needs, "machine_of", lambda mesh, reporter: chip)
    program = (lambda x: x @ x, (jax.ShapeDtypeStruct((8, 8), jnp.float32),), ())
    held = 2**30 if memory is None else 0
    work = [Work("a sum", (lambda x: x + x, program[1], ()), 0), Work("a product", program, 5, held=held)]
    with Reporter(quiet=True) as reporter:
        found = needs.needs(work, make_mesh(devices=[device]), reporter)
    assert "in a product" in found["memory"] or not held
    assert found["memory"].startswith("1.00 GiB") == ("held meanwhile 1.00 GiB" in found["memory"]) == bool(held)
    said = {1: ": does not fit (", None: "unknown", 2**40: ": fits ("}[memory]
    assert said in found["memory"]
    assert f"at least {5 * 2 * 8**3 / 1e9:.2g} s at the 1e+09" in found["time"]
    assert "5 x 1.02e+03 FLOPs" in found["time"]


def test_a_checkpoint_whose_weights_are_elsewhere_is_told_from_its_config(world, tmp_path, capsys, at_once):
    folder = tmp_path / "light"
    shutil.copytree(world.model, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    rows = told(
        capsys, "unlearn", "--model", folder, "--forget", world.forget, "--retain", world.retain,
        "--out", tmp_path / "out", "--method", "npo", "--dry-run",
    )  # fmt: skip
    assert "in bfloat16" in rows["model"]
    assert "its weights are not here" in rows["model"]
    step = next(one for one in at_once if one.name == "a step")
    assert {leaf.dtype for leaf in jax.tree.leaves(step.program[1][0].params)} == {jnp.dtype("bfloat16")}


def test_what_a_run_refuses_a_dry_run_refuses(world, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    given = ["unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.forget, "--dry-run"]
    assert main([*given, "--out", str(tmp_path / "new")]) == 2
    assert "retain set too" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [(), ("--pack", "64"), ("--noise-multiplier", "1", "--private-delta", "1e-5")])
def test_finetune(extra, world, tmp_path, capsys, at_once):
    rows = told(
        capsys, "finetune", "--model", world.model, "--data", world.forget, "--data", world.retain,
        "--out", tmp_path / "out", "--epochs", "3", "--batch-size", "4", "--dry-run", *extra,
    )  # fmt: skip
    assert files(tmp_path) == set()
    steps = int(re.search(r"at most 3 epochs, (\d+) steps of 4", rows["training"]).group(1))
    if "--pack" in extra:
        assert "rows of several records" in rows["training"]
    else:
        count = len(world.rows.forget) + len(world.rows.retain)
        assert rows["data"].startswith(f"{count} records")
        assert steps == 3 * -(-count // 4)
    if "--noise-multiplier" in extra:
        assert "8 gradients in f32" in rows["memory"]
        assert not at_once
    else:
        assert [one.times for one in at_once] == [steps]


def test_curvature(world, tmp_path, capsys, at_once):
    given = ("--model", world.model, "--data", world.retain, "--out", tmp_path / "out", "--batch-size", "4")
    rows = told(capsys, "curvature", *given, "--dry-run")
    count = len(world.rows.retain)
    assert rows["keeps"].startswith("ekfac, about ")
    assert [one.times for one in at_once] == [2 * -(-count // 4)]
    rows = told(capsys, "curvature", *given, "--kind", "gradients", "--samples", "3", "--dry-run")
    size = sum(leaf.size for leaf in _shapes(world)) * 4 * 3
    assert rows["keeps"].startswith(f"gradients of 3 records, {size / 1024:.2f} KiB")
    assert files(tmp_path) == set()


def test_spectrum(world, tmp_path, capsys, at_once):
    """Its programs as often as a run calls them, and the basis that lies beside the first step; nothing else."""
    given = ("spectrum", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--dry-run")
    given += (
        "--out",
        tmp_path / "out",
        "--lanczos-steps",
        "5",
        "--probes",
        "3",
        "--option",
        "cg_steps=7",
        "--batch-size",
        "2",
    )
    rows = told(capsys, *given, "--tries", "4")
    retain = len(world.rows.retain)
    assert rows["batch"].startswith(f"2 forget and {retain} retain records, 32 tokens long")
    assert {"model", "forget", "retain", "products", "memory", "disk", "result"} <= rows.keys()
    assert [(one.times, one.loops) for one in at_once] == [(3, 5), (3, 5), (1, 5), (1, 7), (4, 1)]
    whole = 4 * 5 * sum(leaf.size for leaf in _shapes(world))
    assert [bool(one.held) for one in at_once] == [False, False, False, True, False]
    assert whole / jax.device_count() <= at_once[3].held < whole / 4  # spread like the parameters
    kl, rise = jax.eval_shape(at_once[-1].program[0], *at_once[-1].program[1])  # the basis fits the step
    assert kl.shape == rise.shape == ()
    at_once.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self, alone: make_mesh(devices=jax.devices()[:1]))
        told(capsys, *given, "--tries", "0", "--curvature", "hessian")
    assert len(at_once) == 4
    assert at_once[-1].held == whole
    assert files(tmp_path) == set()


def test_evaluate_and_attack(world, tmp_path, capsys, at_once):
    given = ("--model", world.model, "--forget", world.forget, "--retain", world.retain)
    given += ("--reference-model", world.model, "--before-model", world.model, "--out", tmp_path / "out.json")
    rows = told(capsys, "evaluate", *given, "--dry-run")
    assert {"before", "after", "retrained"} <= rows.keys()
    assert "scored under each of 3 models" in " ".join(rows["texts"].split())
    batches = -(-int(rows["texts"].split()[0]) // 32)
    assert [one.times for one in at_once] == [3 * batches, 2 * batches]  # the others are compared with the retrained
    at_once.clear()
    only = ("--only", "membership", "--only", "lens", "--only", "quantisation")
    rows = told(capsys, "attack", *given, *only, "--dry-run")
    assert rows["tests"].strip() == "lens, quantisation"
    assert rows["skipped"].strip() == "membership (no --holdout)"
    assert files(tmp_path) == set()
    texts = len(world.rows.forget) + len(world.rows.retain)
    assert [one.times for one in at_once] == [3 * 2 * -(-texts // 32)]  # models, tests, batches


def test_canary_score(world, tmp_path, capsys, at_once):
    """All candidates of a small template, and of a large one the canaries with so many others, in batches as scored."""
    key, text = tmp_path / "key.jsonl", "A [bold]code[/] is {digits:2}"
    given = ["--template", text, "--template", "Call {digits:7}", "--copies", "1", "--count", "3"]
    argv = ["canary", "insert", "--data", world.retain, *given, "--out", str(tmp_path / "with.jsonl")]
    rows = told(capsys, *argv, "--key", key, "--dry-run")
    assert rows["records"].split() == [str(len(world.rows.retain))]
    assert rows["canaries"].startswith("6 of 2 templates, 6 copies in all")
    assert files(tmp_path) == set()
    assert main([*argv, "--key", str(key)]) == 0
    capsys.readouterr()
    before = files(tmp_path)
    given = ("canary", "score", "--model", world.model, "--key", key, "--candidates", "200", "--batch-size", "16")
    assert main([str(part) for part in (*given, "--dry-run", "--out", tmp_path / "new.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{text} 100 of 100 candidates scored for 3 canaries: exact ranks" in shown
    assert "Call {digits:7} 203 of 10,000,000 candidates scored for 3 canaries: skew_normal ranks" in shown
    assert "303 records" in shown
    assert sum(one.times * len(one.program[1][1].tokens) for one in at_once) == pytest.approx(303, abs=4 * 16)
    assert all(len(one.program[1][1].tokens) <= 16 for one in at_once)
    assert {"log_probs", "hits"} <= jax.eval_shape(at_once[0].program[0], *at_once[0].program[1]).keys()
    assert files(tmp_path) == before
    assert main([str(part) for part in (*given, "--ranks", "exact", "--dry-run")]) == 2
    assert "needs all 10000000 candidates" in capsys.readouterr().err


def test_bench(world, tmp_path, capsys, at_once, monkeypatch):
    """Every product once and then once a round; what cannot be made is told, as it is by a run."""
    monkeypatch.setattr(models, "init", lambda *_, **__: pytest.fail("weights were made"))
    given = (
        "bench",
        "--batch-size",
        "2",
        "--length",
        "16",
        "--rounds",
        "3",
        "--out",
        tmp_path / "new.json",
        "--dry-run",
    )
    rows = told(capsys, *given, "--size", "1M", "--curvature", "gauss-newton", "--dtype", "bfloat16")
    assert rows["model"].startswith("1M of random weights: 1,0")
    assert "parameters in bfloat16" in rows["model"]
    assert rows["batch"].startswith("2 x 16 random tokens")
    assert [one.name for one in at_once] == ["gradient", "Gauss-Newton", "Gauss-Newton, each of 10 in a loop"]
    assert {one.times for one in at_once} == {4}
    assert files(tmp_path) == set()
    at_once.clear()
    monkeypatch.setattr("jaxunlearn.runs.throughput.kronecker_factors", lambda *_: jnp.ones(2) + jnp.ones(3))
    rows = told(capsys, *given, "--model", world.model, "--curvature", "kfac")
    assert rows["model"].startswith(f"{world.model}: ")
    assert "fails: TypeError: add got incompatible shapes" in " ".join(rows["K-FAC"].split())
    assert [one.name for one in at_once] == ["gradient"]


def test_demo(tmp_path, capsys, at_once, monkeypatch):
    """The five methods and three trainings as often as they may run, in a folder whose name is free."""
    monkeypatch.setattr(models, "init", lambda *_, **__: pytest.fail("weights were made"))
    (tmp_path / "run").mkdir()
    rows = told(capsys, "demo", "--out", tmp_path / "run", "--dry-run")
    assert rows["result"].strip().startswith(f"{tmp_path / 'run-2'}, which is not there yet")
    assert files(tmp_path) == {str(tmp_path / "run")}
    train, *methods_here, score = at_once
    records = [int(rows[name].split()[0]) for name in ("forget", "retain")]
    per_epoch = [-(-count // demo.BATCH) for count in (sum(records), records[1], records[1])]
    assert train.times == demo.EPOCHS * sum(per_epoch)
    assert [one.name for one in methods_here] == [f"a step of {name}" for name in demo.OPTIONS]
    assert [one.times for one in methods_here] == [demo.STEPS] * 4 + [demo.MATCHING_STEPS]
    assert [one.loops for one in methods_here] == [1, 8, 1, 1, 10]
    assert score.times % 7 == 0  # before, retrained and five more
    state, _ = jax.eval_shape(methods_here[-1].program[0], *methods_here[-1].program[1])
    same = jax.tree.map(lambda a, b: a.shape == b.shape, state.params, methods_here[-1].program[1][0].params)
    assert all(jax.tree.leaves(same))


def test_bytes_do_not_depend_on_the_optimiser_that_is_left_out():
    mesh = make_mesh(devices=jax.devices()[:1])
    model, params = models.init(
        models.DecoderConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2
        ),
        jax.random.key(0),
    )
    rows = TokenBatch(jnp.ones((4, 12), jnp.int32), jnp.ones((4, 12)))

    def solve(p, v):
        return CG(5)(GaussNewton()(model, p, rows).damped(0.1), v)

    program = (solve, (params, params), ())
    machine = needs.Topology(needs.Chip("toy", 2**30, 1e9, None, None), (1,))
    (found,) = needs.estimates([Work("a solve", program, 1, 5)], mesh, machine)
    # As XLA does it unless it is told otherwise; the tests of this folder are compiled without.
    usual = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    used = jax.jit(solve).lower(params, params).compile(compiler_options=usual).memory_analysis()
    assert found.arguments == used.argument_size_in_bytes
    assert found.temporaries == pytest.approx(used.temp_size_in_bytes, rel=0.01)
