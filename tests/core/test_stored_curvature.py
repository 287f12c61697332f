"""Curvature that was stored gives the steps of curvature that is taken, with no retain set and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, gathering, labelled, mlp, shard

import jaxunlearn as ju
from jaxunlearn import curvature, methods, operators
from jaxunlearn.curvature import KFAC, EmpiricalFisher, GaussNewton, Stored, store_krylov, store_rows
from jaxunlearn.curvature.kronecker import eigendecompose, kronecker_factors
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.objectives import Objective
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import ClosedForm, lanczos
from jaxunlearn.transforms import STORED

step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


def run(method, model, params, batch):
    state = ju.init(method, model, params, key=jax.random.key(0))
    return step(method, model, state, batch)


@pytest.mark.parametrize("stored", [True, False], ids=["rows", "recomputed"])
def test_dual_gradients_give_the_step_of_fisher_removal(stored):
    model, params = mlp()
    forget, retain = labelled(8, 1), labelled(12, 2)
    expected, _ = run(methods.fisher_removal(damping=0.1, samples=12), model, params, ju.UnlearnBatch(forget, retain))
    rows = store_rows(EmpiricalFisher(12, stored=stored)(model, params, retain).damped(0.7))  # the damping stays behind
    method = methods.compose("x", Objective((ASCENT,)), Stored(), ClosedForm(), damping=0.1, metric=STORED)
    got, info = run(method, model, params, ju.UnlearnBatch(forget, curvature=rows))
    change = np.abs(flat(expected.params) - flat(params)).max()
    np.testing.assert_allclose(flat(got.params), flat(expected.params), atol=1e-4 * change)
    assert 0 < float(info.curvature.span_share) < 1


def test_a_lanczos_basis_is_the_matrix_itself_once_its_space_is_exhausted():
    with jax.enable_x64(True):
        model, params = mlp(sizes=(3, 3), dtype=jnp.float64)
        retain = labelled(20, features=3, dtype=jnp.float64)
        G = GaussNewton()(model, params, retain)
        b = jax.tree.map(lambda p: jnp.sin(1.0 + jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
        dense = np.asarray(operators.to_dense(G))
        whole = operators.to_dense(Stored()(model, params, store_krylov(lanczos(G, b, steps=12))))
        np.testing.assert_allclose(whole, dense, atol=1e-10)
        # Before that it holds the outliers: what is missing is small and never negative.
        part = np.asarray(operators.to_dense(Stored()(model, params, store_krylov(lanczos(G, b, steps=5)))))
        assert np.linalg.eigvalsh(part)[-1] == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=0.02)
        assert np.linalg.matrix_rank(part, tol=1e-10) == 5


def test_rows_come_back_from_their_folder_onto_a_mesh(tmp_path):
    model, params = mlp()
    rows = store_rows(EmpiricalFisher(8)(model, params, labelled(8, 2)))
    curvature.save(tmp_path / "rows", rows, max_shard_size=400, beside={"record.txt": "whose"})  # several files
    assert len(list((tmp_path / "rows").glob("rows-*.safetensors"))) > 1
    assert (tmp_path / "rows" / "record.txt").read_text() == "whose"
    split, _ = shard(params, labelled(8, 2), make_mesh(data=2, fsdp=2, tensor=2))
    for target in (params, split):
        back = curvature.load(tmp_path / "rows", target)
        np.testing.assert_array_equal(flat(back.rows), flat(rows.rows))
        np.testing.assert_array_equal(back.vectors, rows.vectors)
        np.testing.assert_array_equal(back.values, rows.values)
        for row, leaf in zip(jax.tree.leaves(back.rows), jax.tree.leaves(target), strict=True):
            assert len(row.sharding.device_set) == len(leaf.sharding.device_set)
    from_file = methods.fisher_removal(damping=0.1, factors=str(tmp_path / "rows"))
    batch = ju.UnlearnBatch(labelled(8, 1), labelled(8, 2))
    expected, _ = run(methods.fisher_removal(damping=0.1, samples=8), model, params, batch)
    alone = batch._replace(retain=None, curvature=curvature.load(from_file.factors, params))
    got, _ = run(from_file, model, params, alone)
    np.testing.assert_allclose(flat(got.params), flat(expected.params), rtol=1e-4, atol=1e-6)


def test_rows_of_another_model_are_refused_with_all_differences(tmp_path):
    model, params = mlp()
    curvature.save(tmp_path / "rows", store_rows(EmpiricalFisher(2)(model, params, labelled(2, 2))))
    _, other = mlp(sizes=(5, 4, 3, 3))
    with pytest.raises(ValueError, match="does not fit") as refused:
        curvature.load(tmp_path / "rows", other)
    assert refused.value.args[0].count("\n- ") >= 2
    (tmp_path / "rows" / "rows-00001-of-00001.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no readable file of curvature.save"):
        curvature.load(tmp_path / "rows", params)
    with pytest.raises(ValueError, match="holds no stored curvature"):
        curvature.load(tmp_path, params)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    model, params = mlp()
    forget, retain = labelled(8, 1), labelled(16, 2)

    def stores(model, params, retain):
        eigen = eigendecompose(kronecker_factors(model, params, retain, KFAC()), params)
        return eigen, store_rows(EmpiricalFisher(8)(model, params, retain))

    fisher = methods.compose("x", Objective((ASCENT,)), Stored(), ClosedForm(), damping=0.1, metric=STORED)
    recipes = (methods.kfade(factors="-"), fisher)
    alone = stores(model, params, retain)
    expected = [
        run(method, model, params, ju.UnlearnBatch(forget, curvature=store))[0].params
        for method, store in zip(recipes, alone, strict=True)
    ]
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    spread, (forget, retain) = shard(params, (forget, retain), mesh)
    if explicit:
        model = model._replace(logits=gathering(model.logits, mesh))
    for method, target, store in zip(recipes, expected, stores(model, spread, retain), strict=True):
        after, info = run(method, model, spread, ju.UnlearnBatch(forget, curvature=store))
        assert bool(info.applied)
        np.testing.assert_allclose(flat(jax.device_get(after.params)), flat(target), atol=2e-5)
        for new, old in zip(jax.tree.leaves(after.params), jax.tree.leaves(spread), strict=True):
            assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
