"""Several records in one row: batches without padding, whose records cannot see each other.

Records of different lengths, padded to the longest, waste the tokens that pad them. Packed, a row holds records one
behind the other, and `segments` says which record each token is of. Attention is masked across segments and positions
count from the beginning of each, so that every token gets the logits it has when its record is alone (Krell et al.
2021, "Efficient sequence packing without cross-contamination"). Whatever is a sum over tokens is then the same as for
the records in rows of their own: losses and KL divergences, their gradients, Hessian- and Gauss-Newton products,
Fisher matrices of labels that the model draws (independent draws of different tokens add nothing in expectation).

What is a function of single records is not: sequence losses of preference objectives, clipped gradients of private
training, empirical Fisher matrices, stored sequence NLLs. A row would count as one record, so these refuse a
`PackedBatch` by `refuse_packed`.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from jaxunlearn.types import Model, TokenBatch


class PackedTokens(NamedTuple):
    """What a model that knows segments takes in the place of token ids.

    Attributes:
        tokens: token ids, int32, shape [B, T].
        segments: int32, shape [B, T]: the record of the row that each token is of, equal numbers side by side.
    """

    tokens: Int[Array, "B T"]
    segments: Int[Array, "B T"]


class PackedBatch(NamedTuple):
    """Rows of several records each, for a causal language model with `Model.packs`.

    Attributes:
        tokens: token ids, int32, shape [B, T].
        loss_mask: as in `TokenBatch`; 0 for the first token of each record, which nothing precedes.
        segments: 1, 2, ... in the order of a row's records, 0 for padding, int32, shape [B, T].
        positions: as in `TokenBatch`.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([[5, 6, 7, 3, 4, 0]])
        >>> batch = PackedBatch(ids, jnp.array([[0.0, 1, 1, 0, 1, 0]]), jnp.array([[1, 1, 1, 2, 2, 0]]))
        >>> model = Model(logits=lambda params, packed: params[packed.tokens], packs=True)
        >>> batch.predict(model, jnp.eye(8)).weights.tolist()
        [[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
    """

    tokens: Int[Array, "B T"]
    loss_mask: Float[Array, "B T"]
    segments: Int[Array, "B T"]
    positions: Int[Array, "B P"] | None = None

    predict = TokenBatch.predict
    places = TokenBatch.places
    _labels = TokenBatch._labels

    def _inputs(self, model: Model) -> PackedTokens:
        if not model.packs:
            raise ValueError(
                "this model takes no segments (Model.packs), so that the records of a row would see each other; give "
                "each record a row of its own, a TokenBatch (on the command line: leave out --pack)"
            )
        return PackedTokens(self.tokens, self.segments)


def refuse_packed(batch: Any, what: str) -> None:
    """Raises ValueError where `what` needs every row to be one record, and `batch` is packed.

    Example:
        >>> refuse_packed(PackedBatch(None, None, None), "a clipped gradient")
        Traceback (most recent call last):
        ...
        ValueError: a clipped gradient is that of one record, but the rows of a PackedBatch hold several each; ...
    """
    if isinstance(batch, PackedBatch):
        raise ValueError(
            f"{what} is that of one record, but the rows of a PackedBatch hold several each; give each record a row of "
            "its own, a TokenBatch (on the command line: leave out --pack)"
        )
