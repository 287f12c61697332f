"""Texts behind a prefix of other texts: what ReCaLL asks (Xie et al. 2024, arXiv 2406.15968).

The prefix is made of texts that are known to be no members. In front of a member they take away what the model had by
heart and cost it more than they cost an unseen text, which was no surer without them. All texts of a comparison stand
behind the same prefix: as many of the given texts, in their order, as leave room for the longest one.
"""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data import Encoded


def behind_prefix(
    encoded: Sequence[Encoded], prefix: Sequence[Encoded], *, max_length: int, begin: int | None = None
) -> list[Encoded]:
    """Each text with the prefix in front, its loss tokens the same as before.

    Args:
        encoded: the texts.
        prefix: texts to put in front, at least one; each keeps its end token.
        max_length: longest sequence, tokens.
        begin: id of the begin token, which stands once, at the very front.

    Errors:
        ValueError: no prefix, or no room for its first text.

    Example:
        >>> mask = np.array([0.0, 1.0, 1.0])
        >>> a, b, c = (Encoded(np.array([1, i, 2]), mask, None, "", None) for i in (7, 5, 6))
        >>> [one] = behind_prefix([a], [b, c], max_length=5, begin=1)
        >>> one.tokens.tolist(), one.loss_mask.tolist()
        ([1, 5, 2, 7, 2], [0.0, 0.0, 0.0, 1.0, 1.0])
    """
    if not prefix:
        raise ValueError("a conditional attack needs at least one text that is no member to put in front")

    def body(tokens: np.ndarray) -> np.ndarray:
        return tokens[1:] if begin is not None and tokens[0] == begin else tokens

    longest = max(len(body(one.tokens)) for one in encoded)
    front = np.asarray(prefix[0].tokens)
    if len(front) + longest > max_length:
        raise ValueError(
            f"the first text of the prefix ({len(front)} tokens) and the longest text ({longest}) do not fit in "
            f"{max_length} tokens; give shorter non-members"
        )
    for one in prefix[1:]:
        if len(front) + len(body(one.tokens)) + longest > max_length:
            break
        front = np.concatenate([front, body(one.tokens)])
    out = []
    for one in encoded:
        tokens = body(one.tokens)
        mask = np.concatenate([np.zeros(len(front)), np.asarray(one.loss_mask)[-len(tokens) :]])
        joined = np.concatenate([front, tokens]).astype(np.int32)
        out.append(one._replace(tokens=joined, loss_mask=mask.astype(np.float32), offsets=np.zeros((len(joined), 2))))
    return out
