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
# # Evaluating and attacking
#
# A model that no longer *says* something may still *know* it. This notebook measures one unlearned model three ways:
# by what it says, by whether an attacker can tell that it was once told, and by what comes back after a little
# training or after rounding its weights.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxunlearn as ju
from jaxunlearn.evals import attacks
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.references import store, substitute

started = time.monotonic()

# %% [markdown]
# ## Three models: before, unlearned, retrained

# %%
CONTEXT = 48
rows = ju.data.corpus(seed=2, people=20, facts=5, forget_share=0.15, holdout=6)
tokenizer = ju.data.train_tokenizer(ju.data.training_texts(rows))
forget, retain, holdout = (
    ju.data.encode(ju.data.from_rows(part), tokenizer, max_length=CONTEXT)
    for part in (rows.forget, rows.retain, rows.holdout)
)
config = ju.models.DecoderConfig(
    vocab_size=len(tokenizer),
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=True,
)
shape = ju.data.shapes_of(forget + retain)


def train(encoded, seed):
    model, params = ju.models.init(config, jax.random.key(seed), remat="none")
    return model, fit(model, params, encoded, epochs=60, batch_size=25, learning_rate=7e-3, shape=shape).params


model, before = train(forget + retain, 0)
_, retrained = train(retain, 1)

method = ju.methods.counterfactual_matching(max_kl=1e-2, damping=0.01, cg_steps=10)._replace(certify=False)
prompts = substitute(forget, retain, tokenizer, k=16, seed=0, max_length=CONTEXT)
stored = store(method, model, before, forget, retain, prompts=prompts, top_k=64)
state = ju.init(method, model, jax.tree.map(jnp.copy, before), key=jax.random.key(0))
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
for batch in ju.data.pair(forget, retain, batch_size=len(forget), retain_size=32, epochs=20):
    state, _ = step(method, model, state, stored.complete(batch))
models = {"before": before, "unlearned": state.params, "retrained": retrained}

# %% [markdown]
# ## 1. What it says
#
# One scoring pass per set gives log-probabilities of every loss token, and everything else follows on the host. The
# probability of an answer is its geometric mean over tokens, $\exp(-\mathrm{NLL}/n)$.

# %%
sets = {"forget": forget, "retain": retain, "never seen": holdout}
scores = {
    (who, name): ju.evals.score(model, params, encoded, batch_size=128)
    for who, params in models.items()
    for name, encoded in sets.items()
}
print(f"{'probability of the answer':28}" + "".join(f"{name:>12}" for name in sets))
for who in models:
    means = [np.mean(ju.evals.probability(scores[who, name].nll)) for name in sets]
    print(f"{who:28}" + "".join(f"{value:12.3f}" for value in means))
for who, params in models.items():
    found = ju.evals.kl(model, retrained, params, forget, batch_size=128)
    print(f"KL(retrained || {who}) on forget: {found.mean_kl:.2f} nats per token")

# %% [markdown]
# ## 2. Can an attacker tell?
#
# A membership attack scores every text and asks whether texts of the forget set rank apart from texts that were never
# in the data. The area under the ROC curve is the probability that a random member ranks above a random non-member:
# 0.5 tells nothing, 1.0 gives every member away. The retrained model shows what an innocent model scores; with so few
# texts it need not be exactly 0.5, so look at its interval.

# %%
only = ("forget_loss_auc", "forget_min_k_auc", "forget_zlib_auc")
attackers = {
    who: attacks.membership(model, params, forget, holdout, only=only, batch_size=128) for who, params in models.items()
}
for name in only:
    line = []
    for who in models:
        found = attackers[who][name]
        low, high = found["interval"]
        line.append(f"{who} {found['agg_value']:.2f} [{low:.2f}, {high:.2f}]")
    print(f"{name:18}", "; ".join(line))

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), dpi=80, sharex=True)
bins = np.linspace(0, 6, 25)
for one, who in zip(axes, models, strict=True):
    for name, color in (("forget", "tab:red"), ("never seen", "tab:grey")):
        one.hist(np.minimum(scores[who, name].nll, 6), bins=bins, alpha=0.6, color=color, label=name, density=True)
    one.set(title=who, xlabel="loss, nats per token", yticks=[])
axes[0].legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3. What comes back?
#
# *Relearning*: fine-tune on half of the forget set and watch the other half. If it jumps back while the retrained model
# has to learn from nothing, the knowledge was hidden and not gone. $R$ is 1 where the unlearned model gains no faster
# than the retrained one, and near 0 where it jumps back. *Rounding*: weights stored in 4 bits fall back to values near
# the original ones if unlearning moved them little.

# %%
again = attacks.relearning(
    model, state.params, forget, reference=(model, retrained), share=0.5, epochs=3, learning_rate=1e-3, batch_size=8
)
print(f"relearning: R = {again.robustness:.2f}, interval {[round(v, 2) for v in again.interval]}")
print("steps     ", *(f"{n:6}" for n in again.steps))
print("unlearned ", *(f"{v:6.3f}" for v in again.unlearned.mean(axis=1)))
print("retrained ", *(f"{v:6.3f}" for v in again.retrained.mean(axis=1)))
rounded = attacks.quantise(state.params, bits=4)
gone = ju.evals.score(model, rounded, forget, batch_size=128)
print(f"rounded to 4 bits, probability of forgotten answers: {np.mean(ju.evals.probability(gone.nll)):.3f}")

# %% [markdown]
# ## What one may say
#
# The three questions have three answers, and a report that gives only the first is incomplete. This model *answers*
# much more like one that was never told than it did. A membership attack on the loss still tells nearly all forgotten
# people from strangers: the old answer, though no longer the likely one, keeps more probability than a stranger's. And
# half of the forgotten facts, shown again, bring the others back several times as fast as a model learns them that was
# never told. Rounding to 4 bits brings nothing back here.
#
# `jaxunlearn attack` runs all attacks of the library on a checkpoint and says in sentences what came back. Attacks that
# nobody has thought of yet are not among them.

# %%
print(f"{time.monotonic() - started:.0f} s in all")
