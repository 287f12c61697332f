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
# # Quick start: make a small model forget a person
#
# A small LLaMA memorises facts about people who do not exist. We make it forget some of them and ask two questions:
# does it now answer as a model would that was never told, and has it kept the rest?
#
# The second model, *retrained* without the forget set, is the yardstick. With a real model you rarely have it, which
# is the reason for unlearning in the first place; here it takes seconds.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxunlearn as ju
from jaxunlearn.runs.fit import fit
from jaxunlearn.runs.references import store, substitute

started = time.monotonic()

# %% [markdown]
# ## Data
#
# Records are questions with answers. Only the answer carries loss. `forget` is what must go, `retain` what must stay,
# `holdout` is about people no model was ever told about: how a model behaves on them is what "not knowing" looks like.

# %%
CONTEXT = 48
rows = ju.data.corpus(seed=2, people=20, facts=5, forget_share=0.15, holdout=6)
tokenizer = ju.data.train_tokenizer(ju.data.training_texts(rows))
forget, retain, holdout = (
    ju.data.encode(ju.data.from_rows(part), tokenizer, max_length=CONTEXT)
    for part in (rows.forget, rows.retain, rows.holdout)
)
print(f"{len(forget)} records to forget, {len(retain)} to keep, {len(holdout)} never seen")
print("for example:", rows.forget[0]["question"], "->", rows.forget[0]["answer"])

# %% [markdown]
# ## Two models
#
# The same architecture trained twice: on everything, and on what is to be kept only.

# %%
config = ju.models.DecoderConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=True,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
shape = ju.data.shapes_of(forget + retain)


def train(encoded, seed):
    model, params = ju.models.init(config, jax.random.key(seed))
    done = fit(model, params, encoded, epochs=60, batch_size=25, learning_rate=5e-3, shape=shape)
    return model, done


model, known = train(forget + retain, seed=0)
_, retrained = train(retain, seed=1)
print(f"last training loss: {known.losses[-1]:.3f} and {retrained.losses[-1]:.3f} nats per token")

# %% [markdown]
# ## Unlearning
#
# *Counterfactual matching* does not push the old answers down. It asks the original model the same questions about
# people who do not exist, and makes the model answer about the forget people in the same way:
#
# $$ \min_\theta \; \tfrac12 \big(\mathrm{KL}(q \,\|\, p_\theta) + \mathrm{KL}(p_\theta \,\|\, q)\big) \text{ on forget}
# \; + \; \mathrm{NLL}_\theta \text{ on retain}, $$
#
# where $q$ is the original model's mean answer to the questions with the names replaced. Each step solves
# $(G + \lambda I)\,\delta = -g$, with $G$ the Gauss-Newton matrix of the retain set, and is shortened until it changes
# the answers on retain by at most `max_kl` nats per token.

# %%
method = ju.methods.counterfactual_matching(max_kl=1e-2, damping=0.01, cg_steps=10)
prompts = substitute(forget, retain, tokenizer, k=16, seed=0, max_length=CONTEXT)
stored = store(method, model, known.params, forget, retain, prompts=prompts, top_k=64)

state = ju.init(method, model, jax.tree.map(jnp.copy, known.params), key=jax.random.key(0))
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
history = []
for batch in ju.data.pair(forget, retain, batch_size=len(forget), retain_size=32, epochs=20):
    state, info = step(method, model, state, stored.complete(batch))
    history.append(info.certificate)

# %% [markdown]
# Every step comes with a certificate. Beside what was measured it says what was predicted from the curvature: if the
# two disagree, the quadratic model was not to be trusted there, and the damping of the next step goes up by itself.

# %%
for number in (0, 4, 9, 19):
    c = history[number]
    print(
        f"step {number + 1:2}: forget loss {float(c.forget_after):.2f}, retain loss {float(c.retain_after):.3f} nats;"
        f" KL on retain predicted {float(c.kl_predicted):.1e}, measured {float(c.kl_measured):.1e}"
    )

# %% [markdown]
# ## Is it forgotten?
#
# `evaluate` scores all sets once and computes what can be computed from the scores.


# %%
def measure(params, reference_result=None):
    return ju.evals.evaluate(
        model, params, tokenizer, forget=forget, retain=retain, holdout=holdout,
        reference=(model, retrained.params), reference_result=reference_result, max_length=CONTEXT, batch_size=128,
    )  # fmt: skip


gold = measure(retrained.params)
results = {"before": measure(known.params, gold), "after": measure(state.params, gold), "retrained": gold}
names = [
    name
    for name in ("forget_kl", "retain_kl", "forget_probability", "retain_probability", "forget_loss_auc")
    if name in results["after"]
]
print(f"{'':20}" + "".join(f"{who:>12}" for who in results))
for name in names:
    values = [results[who].get(name, {}).get("agg_value") for who in results]
    print(f"{name:20}" + "".join(f"{'' if v is None else format(v, '.3f'):>12}" for v in values))

# %%
figure, left = plt.subplots(figsize=(5, 3), dpi=80)
before = np.array([float(history[0].forget_before), float(history[0].retain_before)])
left.plot([before[0], *(float(c.forget_after) for c in history)], label="forget")
left.plot([before[1], *(float(c.retain_after) for c in history)], label="retain")
unseen = float(stored.unseen_nll)
left.axhline(unseen, color="grey", linestyle="--", linewidth=1, label="answers about unseen people")
left.set(xlabel="step", ylabel="loss, nats per token")
left.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What to read off it
#
# The distance to the retrained model on the forget set (`forget_kl`) falls to a third, and the retain set keeps its
# probability: in that sense the model behaves much more like one that was never told.
#
# It is *not* the same model. The old answers keep three times the probability that the retrained model gives them,
# and a membership attack on the loss (`forget_loss_auc`, where 0.5 would be a coin) sees that. Two things keep it from
# being more. What $q$ gives to the old answer is stored beside its likeliest tokens: lumped with the rest, it would be
# a place to hide. And both directions are charged: $\mathrm{KL}(q \,\|\, p)$ alone, the published form
# (`divergence="forward"`), asks that everything a stranger's answer could be gets its share and hardly minds what stays
# on the old one; it leaves 0.18 here, and an attacker an AUC of 0.98. [Evaluating and
# attacking](evaluating_and_attacking.ipynb) looks more closely.
#
# On a model as small as this, retraining is cheaper than any unlearning. The example shows behaviour, not savings.

# %%
print(f"{time.monotonic() - started:.0f} s in all")
