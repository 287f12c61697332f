"""Curvature editing: write a matrix anew without the directions in which its loss is nearly flat.

Memorised text lives in weight directions that few examples use, and which the curvature over many examples hardly
sees; what is shared by all of them curves strongly. In the eigenbasis of the Kronecker factors of a matrix W,

    C = U_A^T W U_G,      W <- U_A (M * C) U_G^T,      M_ij = 1 for the largest lambda_i mu_j

the mask M keeps the smallest set of entries whose eigenvalues `lambda_i mu_j` add up to a share rho of their total.
Neither a forget set nor a gradient step is needed: the edit removes memorised text of every kind at once.

Reference: Merullo et al., "From memorization to reasoning in the spectrum of loss curvature", arXiv 2510.24256.
"""

from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxunlearn import tree
from jaxunlearn.curvature import KFAC, KroneckerOperator, Stored
from jaxunlearn.curvature.kronecker import Row
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import Objective
from jaxunlearn.transforms import RETAIN, STORED, Curvature, edit_params, metric_of
from jaxunlearn.types import Model, Params, UnlearnBatch


def kfac_edit(
    *,
    rho: float = 0.6,
    only: str = "*gate_proj*,*up_proj*",
    factors: str | None = None,
    samples: int = 1,
    microbatch: int | None = None,
) -> Method:
    """Keep the part of chosen matrices that carries a share `rho` of their curvature on retain; drop the rest.

    One step is the whole method. It has no objective and looks at no forget set.

    Args:
        rho: share of the total of `lambda_i mu_j` to be kept, above 0; 1 changes nothing.
        only: patterns of the paths of the matrices, separated by commas; a pattern without a match is passed over.
        factors: folder that `curvature.save` wrote, read instead of taking factors on retain; every batch
            then carries its content in `curvature`.
        samples: draws of labels a token.
        microbatch: examples at a time while factors are taken.

    Reference: Merullo et al., arXiv 2510.24256; rho = .6 and the gate and up projections are theirs.

    Example:
        >>> kfac_edit(rho=0.8).objective.terms
        ()
    """
    if not 0 < rho <= 1:
        raise ValueError(f"kfac_edit(rho={rho}): give a share above 0 and at most 1")
    patterns = tuple(pattern.strip() for pattern in only.split(","))

    def edit(model: Model, params: Params, batch: UnlearnBatch, key: Array) -> Params:
        paths = [path for path, _ in paths_of(params)]
        known = tuple(p for p in patterns if any(fnmatchcase(path, p) for path in paths))
        if not known:
            raise ValueError(f"kfac_edit(only={only!r}) matches none of the parameters {', '.join(paths)}")
        recipe: Curvature
        if factors is None:
            recipe, metric = KFAC(samples=samples, microbatch=microbatch, only=known), RETAIN
        else:
            recipe, metric = Stored(), STORED
        A = metric_of(recipe, model, params, batch, metric)
        if not isinstance(A, KroneckerOperator):
            raise ValueError(f"kfac_edit(factors={factors!r}): this folder holds no Kronecker factors, but rows")
        return keep_top(A, params, rho, known)

    return Method("kfac_edit", Objective(()), edit_params(edit), factors=factors, retain=factors is None)


def keep_top(A: KroneckerOperator, params: Params, share: float, only: tuple[str, ...] = ("*",)) -> Params:
    """`params` with each matrix that matches `only` reduced to the top `share` of its curvature; f32.

    Raises:
        ValueError: when none of the chosen parameters has a Kronecker-factored block.
    """
    chosen = {
        row.path
        for row in A.table.rows
        if row.block not in ("zero", "diagonal") and any(fnmatchcase(row.path, pattern) for pattern in only)
    }
    if not chosen:
        raise ValueError(f"no matrix among {', '.join(only)} has Kronecker factors; the blocks are\n{A.table}")
    wide = tree.to_vector(params)
    if share >= 1:
        return wide

    def mask(row: Row, values: Array) -> Array:
        return top_share(values, share).astype(values.dtype) if row.path in chosen else jnp.ones_like(values)

    kept = dict(paths_of(A.function(mask)(wide)))
    return map_paths(lambda path, x: kept[path] if path in chosen else x, wide)


def top_share(values: Float[Array, "*stack m n"], share: float) -> Bool[Array, "*stack m n"]:
    """Where the largest of `values >= 0` are, the fewest that add up to `share` of each matrix's total; ties together.

    The threshold is found by bisection of its bits, which for floats from 0 up are ordered as the numbers are: exact,
    and nothing but sums, where sorting would collect a matrix that is spread over devices. A matrix of zeros is kept.

    Example:
        >>> top_share(jnp.array([[5.0, 1.0], [3.0, 1.0]]), 0.7).astype(int).tolist()
        [[1, 0], [1, 0]]
    """
    bits = jnp.int64 if values.dtype == jnp.float64 else jnp.int32

    def at_least(code: Array) -> Array:
        return values >= jax.lax.bitcast_convert_type(code, values.dtype)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        sums = jnp.sum(jnp.where(at_least(middle), values, 0.0), axis=(-2, -1), keepdims=True)
        enough = sums >= share * total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    total = jnp.sum(values, axis=(-2, -1), keepdims=True)
    largest = jnp.max(values, axis=(-2, -1), keepdims=True)
    above = jax.lax.bitcast_convert_type(largest, bits) + 1
    low, _ = jax.lax.fori_loop(0, jnp.iinfo(bits).bits, halve, (jnp.zeros_like(above), above))
    return at_least(low)
