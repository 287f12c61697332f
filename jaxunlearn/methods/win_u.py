"""Woodbury-informed unlearning: remove the forget set from curvature that was taken on everything.

With H the curvature of the mean loss on the whole training set D (damping included), `c = n_f / n` the forget set's
share of the loss tokens and `G_f` its Gauss-Newton matrix, the curvature of what is kept is `H - c G_f`, up to the
factor `n / n_r`. No retain example is needed for it, and the Newton step towards the retrained model is

    d = (H - c G_f)^-1 c g_f = H^-1 J_f^T (I - Lambda K)^-1 r,       K = J_f H^-1 J_f^T,   Lambda = diag(p) - p p^T

(r the softmax residuals, sums over loss tokens in the second form). The paper's form asks for one solve with H a token
and class. Written with a square root of the downdate, `c G_f = S S^T`, it is

    d = c H^-1 (g_f + S (I - M)^-1 S^T H^-1 g_f),        M = S^T H^-1 S,

which needs only as many solves as M has eigenvalues that the gradient meets (`downdate`). S is exact
(`curvature.gauss_newton_factor`, one dual number a loss token and class, of which a Lanczos step keeps a vector) or,
where that is too much memory, a sketch by labels drawn from the model (`curvature.TrueFisher`, one dual number a
sequence and draw). A sketch puts all of G_f's weight on its few directions and so overstates their leverage: give it
many draws, or a pooled H, which is then made of the same sketch.

The eigenvalues of M are those of `Lambda K`: the leverage of the forget set, the part of the curvature along a
direction that it alone supplies. At 1 nothing that is kept bends there, and the step is infinite. So the largest one is
reported in the step's record (`DowndateInfo.leverage`), and those above `max_leverage` are treated as equal to it.

After WIN-U (arXiv 2604.13438), reconstructed from its formulas; the dual form and the cap are ours.
"""

from dataclasses import replace

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.curvature import GaussNewton, Stored, TrueFisher, gauss_newton_factor
from jaxunlearn.methods.downdate import DowndateInfo, check, solve_downdated
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.methods.method import Method, trust
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.operators import Factor, LinearOperator, scaled, summed
from jaxunlearn.solvers import CG, ClosedForm
from jaxunlearn.transforms import Curvature, CurvatureState, Solver, TrustRegion
from jaxunlearn.transforms.precondition import keep_types
from jaxunlearn.transforms.trust_region import shorten
from jaxunlearn.types import Batch, Model, Params, UnlearnBatch


def forget_root(
    model: Model, params: Params, forget: Batch, share: Float[Array, ""] | float, *, draws: int | None = None
) -> Factor:
    """`S` with `S S^T = share G_f`, exact (`draws=None`) or in expectation over `draws` label draws an example."""
    if draws is None:
        S = gauss_newton_factor(lambda p, batch: batch.predict(model, p), params, forget)
    else:
        S = TrueFisher(samples=None, draws=draws)(model, params, forget).factor
    root = jnp.sqrt(share)
    return Factor(lambda c: tree.scale(root, S.forward(c)), lambda v: tree.scale(root, S.transpose(v)), S.like)


def win_u_step(
    H: LinearOperator,
    model: Model,
    params: Params,
    forget: Batch,
    *,
    share: Float[Array, ""] | float,
    draws: int | None = None,
    inverse: Solver | None = None,
    rank: int = 8,
    max_leverage: float = 0.95,
) -> tuple[PyTree, DowndateInfo]:
    """`d = (H - share G_f)^-1 share g_f`, to be added to the parameters, with no retain example anywhere.

    H comes from the time when all data was at hand, for example EK-FAC factors from a file: `curvature.load`,
    `from_eigen`, then `.damped(lambda)`.

    Args:
        H: curvature of the mean loss over the whole training set at `params`, damping included.
        model: pure functions.
        params: the model that was trained on everything.
        forget: what to forget, all of it.
        share: `n_f / n`, the forget set's share of the loss tokens of the whole training set.
        draws: label draws an example in the sketch of `G_f`; `None` takes it exactly.
        inverse: how `H x = b` is solved; `None` is H's own closed form.
        rank, max_leverage: as for `solve_downdated`.

    Example:
        >>> import jax
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> data = LabelledBatch(jnp.eye(4)[jnp.arange(12) % 4], jnp.arange(12) % 3)
        >>> forget, w = jax.tree.map(lambda x: x[:2], data), jnp.zeros((4, 3))
        >>> def removal(w):
        ...     H = GaussNewton()(model, w, data).damped(0.01)
        ...     return win_u_step(H, model, w, forget, share=2 / 12, inverse=CG(20))
        >>> step, info = jax.jit(removal)(w)
        >>> bool(losses.nll(model, w + step, forget)[0] > losses.nll(model, w, forget)[0])
        True
        >>> round(float(info.leverage), 2)
        0.3
    """
    _, g = Objective(((1.0, NLL("forget")),)).value_and_grad(model, params, UnlearnBatch(forget))
    S = forget_root(model, params, forget, share, draws=draws)
    inverse = ClosedForm() if inverse is None else inverse
    return solve_downdated(H, S, tree.scale(share, g), inverse=inverse, rank=rank, max_leverage=max_leverage)


def precondition_by_downdate(
    curvature: Curvature,
    solver: Solver,
    *,
    damping: float,
    step_size: float = 1.0,
    share: float | None = None,
    draws: int | None = None,
    rank: int = 8,
    max_leverage: float = 0.95,
    trust_region: TrustRegion | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`g -> step_size c (H + damping I - c G_f)^-1 g` as an optax transformation; negate afterwards as usual.

    H is what the batch carries in `curvature`, taken on everything beforehand; without it, pooled over the batch:
    `curvature` on its retain examples, and `c G_f` on those to forget.

    Args:
        curvature: recipe of the retain examples' part of a pooled H.
        solver: inverts a pooled `H + damping I`; stored curvature knows its inverse.
        damping: in the units of the curvature; kept fixed.
        step_size: factor on the solution.
        share: `c`, the share of the whole training set's loss tokens that is forgotten; `None` counts the batch.
        draws, rank, max_leverage: as for `win_u`.
        trust_region: optional bound; without retain examples the stored metric predicts what a step costs.
    """
    check(rank, max_leverage)
    if not damping >= 0:
        raise ValueError(f"damping={damping}: a negative damping makes the metric indefinite; give 0 or more")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share={share}: give n_f / n, between 0 and 1, or None to count the batch")

    def init(params: Params) -> CurvatureState:
        zero, lam = jnp.float32(0.0), jnp.float32(damping)
        info = DowndateInfo(jnp.int32(0), jnp.int32(0), zero, jnp.zeros(2, jnp.float32), zero + 0, zero + 0, zero + 0)
        return CurvatureState(lam, lam + 0, info, zero + 1, zero + 1, zero + 1)

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **_):
        c, inverse, region = _share(share, model, params, batch), solver, trust_region
        S = forget_root(model, params, batch.forget, c, draws=draws)
        if batch.curvature is None:
            kept = curvature(model, params, batch.retain)
            # With forget's part taken from S itself, what is taken off is in H whatever S is.
            A = summed(scaled(1.0 - c, kept, psd=kept.psd), S.operator())
        else:
            A, inverse = Stored()(model, params, batch.curvature), ClosedForm()
            if region is not None and batch.retain is None:
                region = replace(region, predict="metric")
        x, info = solve_downdated(
            A.damped(state.damping), S, tree.scale(c, grads), inverse=inverse, rank=rank, max_leverage=max_leverage
        )
        step, length, ratio = tree.scale(step_size, x), jnp.float32(1.0), jnp.float32(1.0)
        if region is not None:
            length, ratio = shorten(region, A, model, params, batch, step)
            step = tree.scale(length, step)
        return step, keep_types(state._replace(solve=info, length=length, ratio=ratio), state)

    return optax.GradientTransformationExtraArgs(init, update)


def _share(share: float | None, model: Model, params: Params, batch: UnlearnBatch) -> Array | float:
    if share is None and batch.curvature is not None:
        raise ValueError("share=None: with stored curvature say which share n_f / n of its loss tokens is forgotten")
    if batch.retain is None and batch.curvature is None:
        raise ValueError(
            "the curvature of everything is pooled over UnlearnBatch.retain, which is None, and forget: pass retain "
            "examples in every batch, or stored curvature of everything in UnlearnBatch.curvature"
        )
    if share is not None:
        return share
    kept, gone = (losses.nll(model, params, part)[1] for part in (batch.retain, batch.forget))
    return gone / (kept + gone)


def win_u(
    *,
    damping: float = 1e-2,
    step_size: float = 1.0,
    share: float | None = None,
    draws: int | None = None,
    rank: int = 8,
    cg_steps: int = 10,
    rtol: float = 1e-3,
    max_leverage: float = 0.95,
    max_kl: float | None = None,
    factors: str | None = None,
    microbatch: int | None = None,
) -> Method:
    """`theta + step_size c (H + damping I - c G_f)^-1 g_f`: the curvature of everything, less that of forget.

    With stored Kronecker factors of everything (`factors`, or `UnlearnBatch.curvature`) no retain example is needed
    and every solve is a closed form. Without, H is pooled over the batch's retain and forget examples.

    Args:
        damping: lambda, added to the curvature of everything.
        step_size: factor on the step; 1 is the Newton step towards the retrained model.
        share: c, forgotten share of the loss tokens of the training set; `None` takes that of the batch.
        draws: label draws an example in a low-rank sketch of G_f; `None` takes it exactly, which stores `rank` vectors
            of one number a loss token and class.
        rank: most directions of G_f that are taken off, one solve with H each.
        cg_steps: most Gauss-Newton products a solve with a pooled H.
        rtol: relative residual at which such a solve stops.
        max_leverage: cap on the share of a direction's curvature that the forget set may be said to supply; no
            direction of the step grows by more than `1 / (1 - max_leverage)`.
        max_kl: optional trust region, nats of KL on retain per step.
        factors: folder of stored Kronecker factors, taken on the whole training set.
        microbatch: examples per accumulation step of a product.

    After WIN-U (arXiv 2604.13438).
    """
    downdate = precondition_by_downdate(
        GaussNewton(microbatch),
        CG(cg_steps, rtol),
        damping=damping,
        step_size=step_size,
        share=share,
        draws=draws,
        rank=rank,
        max_leverage=max_leverage,
        trust_region=trust(max_kl, adapt=False),
    )
    transform = optax.chain(downdate, optax.scale(-1.0))
    return Method("win_u", Objective((ASCENT,), microbatch), transform, factors=factors, retain=factors is None)
