"""Spectra and damping paths against dense float64 matrices, and the marked step against a run of `unlearn`."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxunlearn import losses, methods, models, operators
from jaxunlearn.cli import main
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.runs.damping_path import damping_of, damping_path, measure_path, newton_space
from jaxunlearn.runs.eigenvalues import panel_of, spectrum_of
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.record import CONFIG
from jaxunlearn.runs.settings import Devices
from jaxunlearn.runs.spectrum import first_step
from jaxunlearn.solvers import CG, Spectrum, outliers
from jaxunlearn.types import Model, TokenBatch, UnlearnBatch

KINDS = {"gauss-newton": GaussNewton(), "hessian": Hessian()}
V, D = 7, 3
MODEL = Model(logits=lambda p, tokens: jnp.tanh(p["table"][tokens]) @ p["head"])


class Source(NamedTuple):
    """What a run asks of a model besides its functions."""

    config: models.DecoderConfig


class World(NamedTuple):
    """A nonlinear model of 42 parameters in float64, its batch, and what is dense about it."""

    params: Any
    batch: UnlearnBatch
    matrix: dict[str, np.ndarray]
    gradient: np.ndarray
    found: dict[str, Spectrum]
    space: dict[str, Any]


def flat(x):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])


def mean_nll(params, batch):
    total, count = losses.nll(MODEL, params, batch)
    return total / count


@pytest.fixture(scope="module")
def small():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {
            "table": jnp.asarray(rng.normal(size=(V, D))),
            "head": jnp.asarray(np.diag([4.0, 1.0, 0.2]) @ rng.normal(size=(D, V))),
        }
        rows = {n: TokenBatch(rng.integers(0, V, (n, 9)), np.ones((n, 9)).cumsum(1) > 2) for n in (3, 8)}
        rows = {n: TokenBatch(jnp.asarray(b.tokens), jnp.asarray(b.loss_mask, jnp.float64)) for n, b in rows.items()}
        batch = UnlearnBatch(rows[3], rows[8])
        size = V * D * 2
        return World(
            params,
            batch,
            {
                n: np.asarray(jax.jit(lambda p, c=c: operators.to_dense(c(MODEL, p, batch.retain)))(params))
                for n, c in KINDS.items()
            },
            flat(jax.jit(jax.grad(mean_nll))(params, batch.forget)),
            {n: spectrum_of(MODEL, params, batch.retain, c, steps=size, probes=32, seed=1) for n, c in KINDS.items()},
            {n: newton_space(MODEL, params, batch, c, steps=size) for n, c in KINDS.items()},
        )


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_dense_matrix(small, kind):
    """All eigenvalues are somewhere, each sign has its own, and a whole decade's area is its count: the probes' error
    is known, that of the quadrature is none at full length."""
    theta, found = np.linalg.eigvalsh(small.matrix[kind]), small.found[kind]
    panel = panel_of(found, "retain", psd=kind == "gauss-newton")
    cell = panel.decades[1] - panel.decades[0]
    sides = {1: panel.positive, -1: panel.negative}
    assert (sides[-1] is None) == (kind == "gauss-newton")
    rounding = 16 * np.finfo(np.float32).eps * np.abs(theta).max()
    zero = float(np.mean(np.sum(found.weights * (np.abs(found.nodes) <= rounding), axis=1))) * theta.size
    total = zero + sum(side.value.sum() * cell for side in sides.values() if side is not None)
    assert total == pytest.approx(theta.size, rel=1e-4)
    for sign, side in sides.items():
        if side is None:
            continue
        # Thresholds in the widest gaps, where the blur reaches least.
        sizes = np.sort(np.log10(sign * theta[sign * theta > rounding]))
        for at in np.argsort(np.diff(sizes))[-3:]:
            cut = (sizes[at] + sizes[at + 1]) / 2
            above = side.value[panel.decades > cut].sum() * cell
            error = side.standard_error[panel.decades > cut].sum() * cell
            assert abs(above - (sizes > cut).sum()) < 3 * error + 0.5
    trace, squares = (float(np.mean(np.sum(found.weights * found.nodes**p, 1))) * theta.size for p in (1, 2))
    spread = np.std(np.sum(found.weights * found.nodes, 1)) * theta.size / np.sqrt(31)
    assert abs(trace - theta.sum()) < 4 * spread
    assert squares == pytest.approx((theta**2).sum(), rel=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_outliers_are_eigenvalues_within_their_bounds(small, kind):
    """Also of a run that is far too short for the rest of the spectrum, where bounds are all there is."""
    theta = np.linalg.eigvalsh(small.matrix[kind])
    with jax.enable_x64(True):
        short = spectrum_of(MODEL, small.params, small.batch.retain, KINDS[kind], steps=9, probes=3, seed=0)
    found = outliers(short)
    apart = np.abs(found.value[:, None] - theta).min(axis=1)
    assert (apart <= found.error).all()
    assert np.abs(found.value - theta[-1]).min() <= found.error.max()
    assert 1 <= found.value.size < 9
    inwards = np.diff(short.nodes, axis=1, prepend=0.0)  # of positive nodes, the gap to the next one below
    alone = short.errors <= 0.1 * inwards
    assert not alone[short.nodes > 0].all()
    kept = np.isin(short.nodes, found.value)
    assert alone[kept & (short.nodes > 0)].all()
    lowest = outliers(small.found[kind]).value.min()
    assert lowest == pytest.approx(theta[0], rel=1e-6) if kind == "hessian" else lowest > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_is_that_of_dense_solves(small, kind):
    A, G, g = small.matrix[kind], small.matrix["gauss-newton"], small.gradient
    theta = np.linalg.eigvalsh(A)
    dampings = np.geomspace(1e-4, 10.0, 9) * theta[-1]
    path = damping_path(small.space[kind], dampings)
    for i, damping in enumerate(dampings):
        x = np.linalg.solve(A + damping * np.eye(g.size), g)
        np.testing.assert_allclose(
            [path.gain[i], path.kl[i], path.length[i]], [g @ x, x @ G @ x / 2, np.linalg.norm(x)], rtol=1e-6
        )
        assert path.positive_definite[i] == (theta[0] + damping > 0)
        assert path.residual[i] < 1e-6
    assert path.positive_definite.all() == (kind == "gauss-newton")


@pytest.mark.parametrize("products", [1, 4])
def test_fewer_products_are_as_many_steps_of_conjugate_gradients(small, products):
    G, g, damping = small.matrix["gauss-newton"], small.gradient, 0.01
    path = damping_path(small.space["gauss-newton"], np.array([damping]), products=products)
    with jax.enable_x64(True):
        A = operators.LinearOperator(lambda v: jnp.asarray(G) @ v + damping * v, jnp.asarray(g), psd=True)
        x, info = jax.jit(lambda b: CG(products, rtol=0.0)(A, b))(jnp.asarray(g))
    x = np.asarray(x)
    np.testing.assert_allclose([path.gain[0], path.kl[0]], [g @ x, x @ G @ x / 2], rtol=1e-7)  # counts are f32
    assert path.residual[0] == pytest.approx(float(info.relative_residual), rel=1e-9)
    assert path.residual[0] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_damping_of_a_bound_costs_the_bound(small, kind):
    A, G, g = small.matrix[kind], small.matrix["gauss-newton"], small.gradient
    damping = damping_of(small.space[kind], 1e-3)
    x = np.linalg.solve(A + damping * np.eye(g.size), g)
    assert x @ G @ x / 2 == pytest.approx(1e-3, rel=1e-6)
    assert np.linalg.eigvalsh(A)[0] + damping > 0
    assert damping_of(small.space["gauss-newton"], 1e9) is None


def test_at_equal_cost_less_damping_gains_more(small):
    """`(g.x)^2 / x.G x` is greatest for `x = G^-1 g` (Cauchy-Schwarz), and falls with the damping."""
    path = damping_path(small.space["gauss-newton"], np.geomspace(1e-3, 10.0, 30))
    gain = path.gain / np.sqrt(path.kl)
    assert (np.diff(gain) < 0).all()


def test_steps_that_are_tried_do_what_is_measured(small):
    g = small.gradient
    with jax.enable_x64(True):
        path = damping_path(small.space["hessian"], np.array([1.0, 100.0]))
        kl, gain = measure_path(MODEL, small.params, small.batch, small.space["hessian"], path)
        for i, damping in enumerate(path.damping):
            x = np.linalg.solve(small.matrix["hessian"] + damping * np.eye(g.size), g)
            leaves, structure = jax.tree.flatten(small.params)
            parts = np.split(x, np.cumsum([leaf.size for leaf in leaves])[:-1])
            after = structure.unflatten(
                [leaf + part.reshape(leaf.shape) for leaf, part in zip(leaves, parts, strict=True)]
            )
            rise = mean_nll(after, small.batch.forget) - mean_nll(small.params, small.batch.forget)
            assert gain[i] == pytest.approx(float(rise), rel=1e-4)
        # A short step does what it is predicted to do.
        assert gain[1] == pytest.approx(path.gain[1], rel=0.05)
        assert kl[1] == pytest.approx(path.kl[1], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_marked_step_lies_on_the_path_of_its_own_products(small, kind):
    """Shortened by the factor of the trust region: gain times it, KL times its square."""
    make = {"gauss-newton": methods.gauss_newton_ascent, "hessian": methods.newton_removal}[kind]
    method = make(max_kl=1e-3, damping=20.0, cg_steps=4, rtol=1e-9)
    with jax.enable_x64(True):
        taken, solved = first_step(method, MODEL, small.params, small.batch, seed=0)
    path = damping_path(small.space[kind], np.array([taken.damping]), products=taken.products)
    assert taken.products == 4
    assert taken.gain == pytest.approx(taken.factor * path.gain[0], rel=1e-4)
    assert taken.kl == pytest.approx(taken.factor**2 * path.kl[0], rel=1e-4)
    assert solved["residual"] == pytest.approx(path.residual[0], rel=1e-3)
    wanted = np.sqrt(1e-3 / path.kl[0])
    assert taken.factor == pytest.approx(wanted if kind == "gauss-newton" else min(wanted, 1.0), rel=1e-3)


def test_the_command_marks_the_step_that_unlearn_takes(world, tmp_path, monkeypatch, capsys):
    """Both commands on the same records and options, with a model that takes no time to compile."""
    keys = jax.random.split(jax.random.key(0))
    size = len(world.tokenizer)
    params = {"table": jax.random.normal(keys[0], (size, D)), "head": jax.random.normal(keys[1], (D, size))}
    model = MODEL._replace(source=Source(models.read_config(Path(world.model))))
    monkeypatch.setattr(models, "load", lambda *_, **__: (model, jax.tree.map(jnp.copy, params)))
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)
    ran = []

    def first(*given, **settings):
        ran.append(forget(*given, **settings).info)
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxunlearn.runs.unlearn.forget", first)
    sets = ["--model", world.model, "--forget", world.forget, "--retain", world.retain]
    same = [*sets, "--batch-size", "2", "--retain-size", "3", "--option", "cg_steps=3", "--seed", "3"]
    run = ["unlearn", *same, "--method", "gauss_newton_ascent", "--steps", "1", "--stop-at-nll", "99"]
    assert main([*run, "--out", str(tmp_path / "forgotten")]) == 130
    out = tmp_path / "spectrum"
    assert main(["spectrum", *same, "--out", str(out), "--lanczos-steps", "8", "--probes", "2", "--tries", "2"]) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [CONFIG, "spectrum.json", "spectrum.svg", "spectrum.png", "damping.svg", "damping.png"]
    )
    found = json.loads((out / "spectrum.json").read_text())
    marked, (certificate, curvature) = found["first_step"], (ran[0].certificate, ran[0].curvature)
    for ours, theirs in (("kl", "kl_predicted"), ("kl_measured", "kl_measured"), ("gain", "forget_predicted")):
        assert marked[ours] == pytest.approx(float(getattr(certificate, theirs)), rel=1e-4)
    assert marked["factor"] == pytest.approx(float(curvature.length), rel=1e-4)
    assert (marked["damping"], marked["products"]) == (pytest.approx(0.1), 3)
    assert len(found["inputs"]["model"]["sha256"]) == 64
    assert len(found["path"]["tried"]["kl"]) == 2
    assert found["retain"]["unknowns"] == found["forget"]["unknowns"] == 2 * D * size
    assert np.shape(found["forget"]["nodes"]) == (2, 8)
    for name in ("spectrum", "damping"):
        assert ET.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
    assert yaml.safe_load((out / CONFIG).read_text())["option"] == ["cg_steps=3"]
    assert "first step of gauss_newton_ascent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--probes", "1"], "--probes 1: give at least 2"),
        (["--option", "dampin=1"], "did you mean damping"),
        (["--forget", "RETAIN"], "retain set too"),
        (["--out", "HERE"], "nothing of yours is overwritten"),
    ],
)
def test_mistakes_are_named_before_weights_are_read(world, tmp_path, capsys, flags, told):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    places = {"RETAIN": world.retain, "HERE": str(tmp_path / "full")}
    given = {"--model": world.model, "--forget": world.forget, "--retain": world.retain, "--out": str(tmp_path / "new")}
    given |= {flags[0]: places.get(flags[1], flags[1])}
    assert main(["spectrum", *(x for pair in given.items() for x in pair)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
