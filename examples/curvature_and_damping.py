# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choosing curvature and damping
#
# A second-order step solves $(A + \lambda I)\,\delta = g$. Two choices are yours: what $A$ is, and how large $\lambda$.
# Both are visible in the spectrum of $A$, and one Lanczos run shows what *every* damping would do. No step has to be
# taken to find out.

# %%
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxunlearn as ju
from jaxunlearn import curvature, losses, solvers, tree
from jaxunlearn.runs.fit import fit
from jaxunlearn.transforms import measured_kl

started = time.monotonic()

# %% [markdown]
# ## A model that has memorised

# %%
CONTEXT = 48
rows = ju.data.corpus(seed=6, people=16, facts=4, forget_share=0.125, holdout=4)
tokenizer = ju.data.train_tokenizer(ju.data.training_texts(rows))
forget, retain = (
    ju.data.encode(ju.data.from_rows(part), tokenizer, max_length=CONTEXT) for part in (rows.forget, rows.retain)
)
config = ju.models.DecoderConfig(
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=True,
)
model, params = ju.models.init(config, jax.random.key(0), remat="none")
done = fit(model, params, forget + retain, epochs=60, batch_size=16, learning_rate=1e-2)
params = done.params
kept, gone = (jax.tree.map(jnp.asarray, ju.data.collate(part)) for part in (retain[:32], forget))
print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, loss {done.losses[-1]:.3f} nats per token")

# %% [markdown]
# ## Two matrices, two spectra
#
# The Hessian of the loss splits into two parts,
#
# $$ H = \underbrace{\textstyle\sum_i J_i^\top \nabla^2_z \ell_i\, J_i}_{G}
# + \textstyle\sum_{i,k} (\nabla_z \ell_i)_k \nabla^2 z_{ik}. $$
#
# The first, the Gauss-Newton matrix $G$, is never indefinite, and $\tfrac12 \delta^\top G \delta$ is the KL divergence
# that a small step $\delta$ causes. The second may have any sign. Neither is ever formed: a product $G v$ costs about
# one and a half gradients.
#
# Stochastic Lanczos quadrature turns a few dozen such products into a density of eigenvalues.

# %%
recipes = {"Hessian": curvature.Hessian(), "Gauss-Newton": curvature.GaussNewton()}


@partial(jax.jit, static_argnums=0)
def spectrum(recipe, params, batch, key):
    return solvers.slq(recipe(model, params, batch), key, steps=30, probes=2)


spectra = {name: spectrum(recipe, params, kept, jax.random.key(0)) for name, recipe in recipes.items()}
for name, found in spectra.items():
    small = float(jnp.sum(jnp.where(jnp.abs(found.nodes) < 1e-3, found.weights, 0.0)) / found.weights.shape[0])
    print(
        f"{name:13} from {float(found.nodes.min()):8.4f} to {float(found.nodes.max()):7.3f};"
        f" {small:.0%} within 0.001 of zero"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80, sharey=True)
for one, (name, found) in zip(axes, spectra.items(), strict=True):
    low, high = float(found.nodes.min()), float(found.nodes.max())
    grid = jnp.linspace(low - 0.05 * (high - low), 1.05 * high, 400)
    one.semilogy(grid, jnp.maximum(solvers.density(found, grid, width=0.01 * (high - low)).value, 1e-7))
    one.axvline(0, color="grey", linewidth=0.8)
    one.set(title=name, xlabel="eigenvalue", ylim=(1e-6, None))
axes[0].set_ylabel("density")
figure.tight_layout()
plt.show()

# %% [markdown]
# Nearly all eigenvalues sit at zero: most directions in parameter space do not change the answers on retain at all,
# and those are the directions in which forgetting is free. A few large ones stand apart, and a step along them is
# expensive. If the Hessian reaches below zero, $(H + \lambda I)$ is only positive for a $\lambda$ above that; conjugate
# gradients stop at the first such direction and say so (`NEGATIVE_CURVATURE`). That is why $G$ is the default.

# %% [markdown]
# ## One Lanczos run, every damping
#
# From the forget gradient $g$ Lanczos builds an orthonormal basis of $\mathrm{span}(g, Gg, G^2g, \ldots)$ in which $G$
# is a small tridiagonal matrix $T$. There $(T + \lambda I)^{-1}$ costs nothing, for as many $\lambda$ as one likes.


# %%
def forget_loss(p, batch):
    total, count = losses.nll(model, p, batch)
    return total / count


@jax.jit
def tridiagonal(params, kept, gone):
    g = tree.to_vector(jax.grad(forget_loss)(params, gone))
    return solvers.lanczos(curvature.GaussNewton()(model, params, kept), g, 40)


T = tridiagonal(params, kept, gone)
dampings = jnp.logspace(-4, 1, 26)
path = solvers.damping_path(T, dampings)
predicted_kl, predicted_gain = path.curvature / 2, path.slope
print(f"products spent: {int(T.steps)}")

# %% [markdown]
# The quadratic model predicts for a step $\delta_\lambda = (G + \lambda I)^{-1} g$ that the forget loss grows by
# $g \cdot \delta_\lambda$ and that the answers on retain move by $\tfrac12 \delta_\lambda^\top G\, \delta_\lambda$
# nats. Both are promises about small steps. So we take some of these steps and measure.


# %%
@jax.jit
def take(damping, params, T, kept, gone):
    step = solvers.matrix_function(T, lambda theta: 1.0 / (theta + damping))
    after = tree.add(params, tree.cast_like(step, params))
    return measured_kl(model, params, after, kept), forget_loss(after, gone) - forget_loss(params, gone)


tried = dampings[::3]
measured = np.array([[float(v) for v in take(damping, params, T, kept, gone)] for damping in tried])
print("damping   KL on retain: predicted  measured    forget loss: predicted  measured")
for index, damping in enumerate(tried):
    print(
        f"{float(damping):7.1e} {float(predicted_kl[3 * index]):23.2e} {measured[index, 0]:9.2e}"
        f" {float(predicted_gain[3 * index]):22.3f} {measured[index, 1]:9.3f}"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80)
for one, promise, fact, name in (
    (axes[0], predicted_kl, measured[:, 0], "KL on retain, nats per token"),
    (axes[1], predicted_gain, measured[:, 1], "gain of the forget loss, nats"),
):
    one.loglog(dampings, promise, label="predicted")
    one.loglog(tried, np.maximum(fact, 1e-7), "o", label="measured")
    one.set(xlabel="damping", title=name)
    one.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Reading it
#
# To the right, where steps are short, points lie on the lines: the damping is safe and the step forgets little. To the
# left they part: a step so long leaves the region in which the quadratic model means anything. A model that is sure of
# its answers has little curvature where it stands, so the promise of a small KL is broken soonest there.
#
# The library therefore does not ask for one good damping. `max_kl` bounds the predicted KL of a step, the ratio of
# measured to predicted KL moves the damping up or down for the next one (Levenberg and Marquardt), and many small steps
# with fresh curvature replace the one long step.

# %% [markdown]
# A ratio near 1 is a promise kept. Where the model loses its certainty within one step the ratio is far above 1,
# because the curvature appears only on the way; the damping then goes up, and the steps become shorter.

# %%
method = ju.methods.gauss_newton_ascent(max_kl=1e-3, damping=0.1)._replace(certify=False)
state = ju.init(method, model, params, key=jax.random.key(0))
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
for number in range(8):
    state, info = step(method, model, state, ju.UnlearnBatch(gone, kept))
    print(
        f"step {number + 1}: from forget loss {-float(info.objective):.2f} with damping"
        f" {float(info.curvature.used_damping):.1e}; measured over predicted KL {float(info.curvature.ratio):.2f}"
    )

# %%
print(f"{time.monotonic() - started:.0f} s in all")
