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
# # A TPU pod, from laptop planning to launch
#
# Chips are rented by the hour, and most first runs on them die of memory. So plan first: the real program is compiled
# by a real compiler from *shapes alone*. No weights are read, and no accelerator is needed.
#
# With the extra `tpu` (`pip install 'jaxunlearn[tpu]'`) the compiler is that of TPUs and the topology can be any slice
# of a pod. Without it eight virtual CPU devices stand in, as they do below: the bytes of arguments and the FLOPs are
# the same, but temporaries are those of another compiler and say little about a TPU.

# %%
import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import math
import time

import matplotlib.pyplot as plt

from jaxunlearn import models
from jaxunlearn.models.specs import param_specs
from jaxunlearn.runs.plan import markdown, plan
from jaxunlearn.runs.settings import Plan
from jaxunlearn.sharding.topology import CHIPS

started = time.monotonic()
GIB = 2**30

# %% [markdown]
# ## By hand first
#
# Bytes a parameter, over all chips: weights 2 (bfloat16) and a gradient 2. Solver vectors are float32 whatever the
# weights are, and conjugate gradients keep four: solution, residual, direction and product, 16 bytes. That makes 20
# bytes a parameter before any activation:
#
# $$ \text{chips} \;\ge\; \frac{20 \cdot \text{parameters}}{\text{memory of a chip}}. $$

# %%
counts = {name: sum(math.prod(spec.shape) for spec in param_specs(models.preset(name))) for name in models.PRESETS}
kinds = ("v5e", "v6e", "v5p")
print(f"{'':14}{'parameters':>14}{'20 bytes each':>16}" + "".join(f"{kind:>8}" for kind in kinds))
for name, count in counts.items():
    least = [math.ceil(20 * count / CHIPS[kind].memory) for kind in kinds]
    print(f"{name:14}{count:14,}{20 * count / GIB:12.0f} GiB" + "".join(f"{n:8}" for n in least))

# %% [markdown]
# Those are lower bounds, and slices come in fixed sizes: activations come on top, and they grow with the batch and not
# with the model. Adapters (`--lora-rank 8`) train thousands of times fewer parameters, and then only the 2 bytes of the
# weights remain.

# %% [markdown]
# ## Let the compiler say it
#
# `plan` compiles a gradient and a Gauss-Newton product of Llama-3.2-1B for a mesh of eight devices, from shapes.

# %%
question = Plan(
    model="llama-3.2-1b",
    topology="cpu:8",
    mesh="fsdp=4,tensor=2",
    program=("gradient", "gauss-newton"),
    batch_size=8,
    length=256,
)
found = plan(question)

# %%
print(markdown(found))

# %% [markdown]
# The same question to the compiler of TPUs, for 256 chips and 64 sequences of 2048 tokens
# (`jaxunlearn plan --model llama-3.2-1b --topology v5e:16x16 --mesh fsdp=64,tensor=4`), answered on two CPU cores with
# libtpu 0.0.42 on 2026-11-25:
#
# | program | arguments | temporaries | total | of a chip's 16 GiB | at least |
# | --- | --: | --: | --: | --: | --: |
# | gradient | 9.36 MiB | 788.41 MiB | 816.45 MiB | 5% | 0.0281 s |
# | gauss-newton | 28.04 MiB | 1.60 GiB | 1.64 GiB | 10% | 0.0495 s |
# | hessian | 28.04 MiB | 1.96 GiB | 2.01 GiB | 13% | 0.0844 s |
#
# "At least" divides FLOPs by the chip's peak, traffic by what it can send, and takes the longer: a bound, no forecast.
# Weights and vectors are a small part here; nearly all is activations, so a smaller batch fits on far fewer chips.

# %%
figure, axes = plt.subplots(figsize=(6, 2.4), dpi=80)
left = [0.0] * len(found)
for part in ("arguments", "results", "temporaries"):
    sizes = [getattr(one, part) / GIB for one in found]
    axes.barh([one.program for one in found], sizes, left=left, label=part)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
axes.set(xlabel="GiB on each of eight devices")
axes.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Choosing the mesh
#
# `fsdp` splits parameters and batch: begin with all chips there. `tensor` splits heads, hidden units and the
# vocabulary: add it within a host when activations do not fit. `data` repeats parameters: for models that fit one
# host, across hosts. `jaxunlearn plan --smallest` looks for the smallest slice that is enough.

# %% [markdown]
# ## Launch
#
# The same command on every machine of the pod; they find each other. The model and the records must be there under the
# same path (a mounted bucket, say), each process reads only its part of the weights.

# %%
command = " ".join(
    [
        "jaxunlearn unlearn --model /mnt/llama-3.2-1b --forget /mnt/forget.jsonl --retain /mnt/retain.jsonl",
        "--method counterfactual_matching --mesh fsdp=64,tensor=4 --out /mnt/forgotten --resume",
    ]
)
print(f'gcloud compute tpus tpu-vm ssh my-pod --worker=all --command="{command} --dry-run"')
print(f'gcloud compute tpus tpu-vm ssh my-pod --worker=all --command="{command}"')

# %% [markdown]
# `--dry-run` first: it reads headers and shapes, says what the run would do, and starts nothing. `--resume` in the real
# command makes it the same for the first start, for going on after a preemption (the process saves itself on SIGTERM
# and ends with exit code 75), and for a run that is complete.

# %%
print(f"{time.monotonic() - started:.0f} s in all")
