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
# # Unlearning inside your own training loop, on eight devices
#
# `unlearn_step` is one pure function of a state and a batch. It has no opinion about the loop around it, the optimiser
# beside it, or where the arrays live. Here a training loop that already exists (Adam on what should be kept) gets an
# unlearning step every fifth iteration, with all parameters split over eight devices.
#
# The devices are eight virtual CPUs of this machine; the program would be the same on eight accelerators. They must be
# asked for before JAX starts.

# %%
import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxunlearn as ju
from jaxunlearn import curvature, losses, objectives, sharding, solvers
from jaxunlearn.methods.method import trust
from jaxunlearn.runs.fit import fit

started = time.monotonic()
mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
print(len(jax.devices()), "devices:", dict(mesh.shape))

# %% [markdown]
# ## A model split over the mesh
#
# `models.init` and `models.load` lay parameters out by their logical axes: the hidden size over `fsdp`, heads, hidden
# units and vocabulary over `tensor`. This one is small enough to be trained on one device first and spread out then.

# %%
CONTEXT = 48
rows = ju.data.corpus(seed=4, people=16, facts=4, forget_share=0.125, holdout=4)
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
single, known = ju.models.init(config, jax.random.key(0), remat="none")
known = fit(single, known, forget + retain, epochs=70, batch_size=16, learning_rate=1e-2).params

model, empty = ju.models.init(config, jax.random.key(0), mesh=mesh, remat="none")
params = jax.device_put(known, jax.tree.map(lambda a: a.sharding, empty))
kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
print("up_proj:", kernel.shape, "as", kernel.sharding.spec, "- on each device", kernel.addressable_shards[0].data.shape)

# %% [markdown]
# ## Any objective under any curvature
#
# A recipe of the library would do (`ju.methods.npo()`, `ju.methods.gauss_newton_ascent()`). This one is composed by
# hand: SimNPO's loss, which needs no reference model, preconditioned by the Gauss-Newton matrix of the retain batch,
#
# $$ \delta = -(G_r + \lambda I)^{-1} \nabla \mathcal{L}_{\mathrm{SimNPO}}, $$
#
# by five steps of conjugate gradients, and shortened so that the retain answers move by at most $5 \cdot 10^{-3}$
# nats of KL.

# %%
method = ju.methods.compose(
    "SimNPO under Gauss-Newton",
    objectives.Objective(((1.0, objectives.SimNPO()),)),
    curvature.GaussNewton(),
    solvers.CG(max_steps=5),
    damping=0.1,
    trust_region=trust(5e-3),
)
state = ju.init(method, model, params, key=jax.random.key(1))
unlearn = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)

# %% [markdown]
# ## The loop that was there already
#
# Adam on the retain batches. Both steps work on the same parameters: the loop owns them, and hands them to whichever
# step is due with `state._replace(params=...)`.

# %%
optimizer = optax.adam(1e-4)


@partial(jax.jit, donate_argnums=(0, 1))
def train(params, opt_state, batch):
    def loss(p):
        total, count = losses.nll(model, p, batch)
        return total / count

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


opt_state = optimizer.init(state.params)
curve = []
for number, pair in enumerate(ju.data.pair(forget, retain, batch_size=8, retain_size=16, epochs=30)):
    batch = pair.on(mesh)
    if number % 5 == 0:
        state, info = unlearn(method, model, state, batch)
        c = info.certificate
        curve.append((number, float(c.forget_after), float(c.retain_after), int(info.curvature.solve.steps)))
    else:
        params, opt_state, value = train(state.params, opt_state, batch.retain)
        state = state._replace(params=params)
    if number == 24:
        break

for number, gone, kept, products in curve:
    print(f"step {number:2}: forget {gone:6.3f}, retain {kept:.3f} nats per token, {products} curvature products")
print("layout afterwards:", state.params["layers"]["mlp"]["up_proj"]["kernel"].sharding.spec)

# %% [markdown]
# ## Do eight devices give what one gives?
#
# The same unlearning step from the same parameters on one device. Sums over devices are added in another order, so the
# results agree to rounding and not to the bit.

# %%
one_device = jax.devices()[0]
here = jax.device_put(jax.tree.map(jnp.copy, state), one_device)
alone, _ = unlearn(method, single, here, jax.device_put(pair.batch, one_device))
spread, _ = unlearn(method, model, state, pair.on(mesh))
gaps = jax.tree.map(
    lambda a, b: float(jnp.max(jnp.abs(jax.device_get(a) - jax.device_get(b)))), spread.params, alone.params
)
print(f"largest difference of any parameter: {max(jax.tree.leaves(gaps)):.1e}")

# %%
figure, axes = plt.subplots(figsize=(5, 3), dpi=80)
axes.plot([c[0] for c in curve], [c[1] for c in curve], "o-", label="forget")
axes.plot([c[0] for c in curve], [c[2] for c in curve], "o-", label="retain")
axes.set(xlabel="iteration of the loop", ylabel="loss, nats per token")
axes.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# The forget loss climbs at every unlearning step; the retain loss drifts up with it, to about twice what it was, and
# the few steps of Adam in between do not bring it all the way back. More of them, or a smaller `max_kl`, would. How far
# the forget loss *should* climb is a question this loop does not answer: ascent, and SimNPO is ascent in the end, goes
# on past the loss that an untold model would have. [Quick start](quick_start.ipynb) shows an objective that knows where
# to stop.

# %%
print(f"{time.monotonic() - started:.0f} s in all")
