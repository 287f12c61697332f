"""What a program is said to send and to compute, against programs whose traffic and products are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.sharding import make_mesh, mesh_sizes
from jaxunlearn.sharding.program import equation_flops, matmul_flops, traffic
from jaxunlearn.sharding.topology import parse_topology, smaller

N = 16


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(fsdp=8)


def spread(mesh, *axes):
    return jax.device_put(jnp.ones((N, N)), NamedSharding(mesh, PartitionSpec(*axes)))


def compiled(f, *args, out=None):
    return jax.jit(f, out_shardings=out).lower(*args).compile()


def test_a_gathered_matrix_is_counted_once_a_turn(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def layers(x, stack):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(layer, x, stack)[0]

    stack = jax.device_put(jnp.ones((5, N, N)), NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    found = {one.kind: one for one in traffic(compiled(layers, spread(mesh, "fsdp"), stack, out=split))}
    assert set(found) == {"all-gather"}
    assert found["all-gather"] == ("all-gather", 5.0, 5 * 4.0 * N * N, 4.0 * N * N)


def test_a_sum_over_devices_is_an_all_reduce(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    (found,) = traffic(compiled(lambda a, b: a.T @ b, spread(mesh, "fsdp"), spread(mesh, "fsdp"), out=whole))
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 1.0, 4.0 * N * N)


def test_a_loop_without_a_known_end_counts_as_often_as_one_says(mesh):
    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e9, lambda x: x @ w, x)

    x, w = jnp.ones((2, N)), jnp.ones((N, N))
    assert matmul_flops(compiled(until, x, w), unknown=7) == 7 * 2 * 2 * N * N
    assert equation_flops(jax.make_jaxpr(until)(x, w), unknown=7) == 7 * 2 * 2 * N * N


def test_both_counts_agree_through_scans_branches_and_derivatives():
    def loss(w, x, flag):
        def layer(x, w):
            return jax.lax.cond(flag, lambda y: jnp.tanh(y @ w), lambda y: y @ w @ w, x), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0] ** 2)

    args = jnp.ones((3, N, N)), jnp.ones((4, N)), True
    one = 2.0 * 4 * N * N
    assert matmul_flops(compiled(loss, *args)) == 3 * 2 * one  # the dearer branch
    assert equation_flops(jax.make_jaxpr(loss)(*args)) == 3 * 2 * one
    # A gradient: what is recomputed, and two products for each of the two in the dearer branch.
    assert equation_flops(jax.make_jaxpr(jax.grad(loss))(*args)) >= 3 * 6 * one


@pytest.mark.parametrize(
    ("text", "told"),
    [("v9:4x4", "no chip 'v9'"), ("v5e:4", "has 2 sizes, as in v5e:4x4"), ("v5p:4x4", "3 sizes"), ("cpu:x", "1 sizes")],
)
def test_topologies_that_are_none(text, told):
    with pytest.raises(ValueError, match=told):
        parse_topology(text)


def test_smaller_grids_are_grids_of_the_network():
    assert [str(one) for one in smaller(parse_topology("v5p:4x4x8"))] == [
        "v5p:1x1x1",
        "v5p:2x2x2",
        "v5p:2x2x4",
        "v5p:2x4x4",
        "v5p:4x4x4",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fsdp=3", "needs 3 devices, but there are 8; fsdp=3 does not divide them"),
        ("fsdp=-1,data=-1", "only one axis"),
        ("model=8", "'model=8' is not one of data, fsdp, tensor"),
        ("fsdp=two", "'fsdp=two' is not one of"),
        ("fsdp=0", "'fsdp=0' is not one of"),
    ],
)
def test_meshes_that_do_not_fit(text, told):
    with pytest.raises(ValueError, match=told):
        mesh_sizes(text, 8)
