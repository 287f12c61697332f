"""The same decoder in torch transformers, with the same weights, batch and vector: what double backward costs there.

Weights and vectors cross over as checkpoints, through the library's own `save`, so the comparison of the two
Hessian-vector products is one of the exporter as well.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from jaxunlearn import models
from jaxunlearn.types import Model, Params, TokenBatch


class Peer:
    """Gradient and Hessian-vector products by double backward, eager attention (the fused kernel has no second one).

    Args:
        config, model, params, batch, vector: the problem as it stands on the JAX side.
    """

    version = torch.__version__

    def __init__(
        self, config: models.DecoderConfig, model: Model, params: Params, batch: TokenBatch, vector: Params
    ) -> None:
        self._model = model
        self._net = LlamaForCausalLM(config.to_hf()).float()
        self._net.set_attn_implementation("eager")
        # A tied head is stored once, as the embedding table.
        self._net.load_state_dict(self._tensors(params), strict=False)
        self._net.tie_weights()
        self._names, self._weights = zip(*self._net.named_parameters(), strict=True)
        self._tokens = torch.tensor(np.asarray(batch.tokens)).long()
        self._mask = torch.tensor(np.asarray(batch.loss_mask)[:, 1:])
        self._vector = self._ordered(vector)
        self._retained = torch.autograd.grad(self.loss(), self._weights, create_graph=True)

    def loss(self) -> torch.Tensor:
        """Mean NLL over loss tokens, nats."""
        logits = self._net(self._tokens).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self._tokens[:, 1:].flatten(), reduction="none")
        return (nll * self._mask.flatten()).sum() / self._mask.sum()

    def gradient(self) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(self.loss(), self._weights)

    def product(self) -> tuple[torch.Tensor, ...]:
        """One Hessian-vector product from nothing."""
        first = torch.autograd.grad(self.loss(), self._weights, create_graph=True)
        return torch.autograd.grad(first, self._weights, grad_outputs=self._vector)

    def retained_product(self) -> tuple[torch.Tensor, ...]:
        """One more product on a graph that is kept: the cheapest one in a solve."""
        return torch.autograd.grad(self._retained, self._weights, grad_outputs=self._vector, retain_graph=True)

    def runs(self) -> dict[str, Callable[[], object]]:
        return {
            "gradient in torch": self.gradient,
            "double backward": self.product,
            "double backward, graph kept": self.retained_product,
        }

    def differences(self, total_and_count: tuple[jax.Array, jax.Array], product: Params) -> tuple[float, float]:
        """How far torch is from the JAX results: the loss in nats, the product relative to its norm."""
        total, count = total_and_count
        loss = abs(float(total / count) - self.loss().item())
        squares = [
            (((a - b) ** 2).sum(), (b**2).sum()) for a, b in zip(self.product(), self._ordered(product), strict=True)
        ]
        return loss, float((sum(d for d, _ in squares) / sum(n for _, n in squares)).sqrt())

    def _ordered(self, params: Params) -> list[torch.Tensor]:
        tensors = self._tensors(params)
        return [tensors[name] for name in self._names]

    def _tensors(self, params: Params) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            path = models.save(Path(folder) / "checkpoint", self._model, params)
            return load_file(path / "model.safetensors")
