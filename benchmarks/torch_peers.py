"""The same decoder in torch transformers, with the same weights, batch and vector: what products cost there.

Weights and vectors cross over as checkpoints, through the library's own `save`, so the comparison of two products is
one of the exporter as well. Attention is eager: the fused kernel has no second derivative.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from transformers import LlamaForCausalLM

from jaxunlearn import models
from jaxunlearn.types import Model, Params, TokenBatch

VERSION = torch.__version__
Vector = tuple[torch.Tensor, ...]


class Logits(torch.nn.Module):
    """The network as a map from tokens [B, T] to the logits of places that have a successor, [B (T - 1), V]."""

    def __init__(self, net: LlamaForCausalLM) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        B, T = tokens.shape
        # Without a mask of its own transformers looks into the tokens for packed sequences, which torch.func cannot
        # trace; without `use_cache=False` every call would fill a cache that nobody reads.
        hidden = torch.full((T, T), torch.finfo(torch.float32).min).triu(1).expand(B, 1, T, T)
        logits = self.net(tokens, attention_mask=hidden, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)


class Peer:
    """Gradient, Hessian products and Gauss-Newton products in torch; each method of `routes` is one blocking call.

    Args:
        config, model, params, batch, vector: the problem as it stands on the JAX side.
    """

    def __init__(
        self, config: models.DecoderConfig, model: Model, params: Params, batch: TokenBatch, vector: Params
    ) -> None:
        self._model = model
        self._net = LlamaForCausalLM(config.to_hf()).float()
        self._net.set_attn_implementation("eager")
        # A tied head is stored once, as the embedding table.
        self._net.load_state_dict(self._tensors(params), strict=False)
        self._net.tie_weights()
        self._module = Logits(self._net)
        self._names, self._weights = zip(*self._net.named_parameters(), strict=True)
        self._tokens = torch.tensor(np.asarray(batch.tokens)).long()
        self._targets = self._tokens[:, 1:].flatten()
        self._mask = torch.tensor(np.asarray(batch.loss_mask)[:, 1:]).flatten()
        self._vector = self.ordered(vector)

    def routes(self) -> dict[str, Callable[[], Callable[[], Vector]]]:
        """Name -> set-up that returns the blocking call; either may fail, which is a result too."""
        return {
            "torch: gradient": lambda: self._gradient,
            "torch: double backward": lambda: self._double_backward,
            "torch: double backward, graph kept": self._kept_graph,
            "torch.func: jvp of grad": self._forward_over_reverse,
            "torch.func: linearize of grad, each product": self._linearised,
            "curvlinops: Hessian": lambda: self._curvlinops("HessianLinearOperator"),
            "curvlinops: Gauss-Newton": lambda: self._curvlinops("GGNLinearOperator"),
        }

    def ordered(self, params: Params) -> Vector:
        """A parameter tree of the JAX side as the tensors of this network."""
        tensors = self._tensors(params)
        return tuple(tensors[name] for name in self._names)

    def _loss(self, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Mean NLL over loss tokens, nats."""
        if weights is None:
            logits = self._module(self._tokens)
        else:
            named = {f"net.{name}": weight for name, weight in weights.items()}
            logits = functional_call(self._module, named, (self._tokens,))
        nll = torch.nn.functional.cross_entropy(logits, self._targets, reduction="none")
        return (nll * self._mask).sum() / self._mask.sum()

    def _gradient(self) -> Vector:
        return torch.autograd.grad(self._loss(), self._weights)

    def _double_backward(self) -> Vector:
        first = torch.autograd.grad(self._loss(), self._weights, create_graph=True)
        return torch.autograd.grad(first, self._weights, grad_outputs=self._vector)

    def _kept_graph(self) -> Callable[[], Vector]:
        first = torch.autograd.grad(self._loss(), self._weights, create_graph=True)
        return lambda: torch.autograd.grad(first, self._weights, grad_outputs=self._vector, retain_graph=True)

    def _named(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        weights = {name: weight.detach() for name, weight in zip(self._names, self._weights, strict=True)}
        return weights, dict(zip(self._names, self._vector, strict=True))

    def _forward_over_reverse(self) -> Callable[[], Vector]:
        weights, vector = self._named()
        gradient = torch.func.grad(self._loss)

        def product() -> Vector:
            _, out = torch.func.jvp(gradient, (weights,), (vector,))
            return tuple(out[name] for name in self._names)

        return product

    def _linearised(self) -> Callable[[], Vector]:
        weights, vector = self._named()
        _, tangents = torch.func.linearize(torch.func.grad(self._loss), weights)

        def product() -> Vector:
            out = tangents(vector)
            return tuple(out[name] for name in self._names)

        return product

    def _curvlinops(self, kind: str) -> Callable[[], Vector]:
        import curvlinops

        loss = torch.nn.CrossEntropyLoss()  # the mean over tokens, which is ours too, as every one carries loss
        data = [(self._tokens, self._targets)]
        operator = getattr(curvlinops, kind)(
            self._module, loss, list(self._weights), data, check_deterministic=False, num_data=len(self._tokens)
        )
        return lambda: tuple(operator @ list(self._vector))

    def _tensors(self, params: Params) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            path = models.save(Path(folder) / "checkpoint", self._model, params)
            return load_file(path / "model.safetensors")


def distance(theirs: Vector, ours: Vector) -> float:
    """`||theirs - ours|| / ||ours||`."""
    squares = [(((a - b) ** 2).sum(), (b**2).sum()) for a, b in zip(theirs, ours, strict=True)]
    return float((sum(d for d, _ in squares) / sum(n for _, n in squares)).sqrt())
