"""Taps: sums over a backward pass that come out of `jax.grad` as if they were gradients.

A curvature factor is a sum over the backward pass of one matrix product: of `a_t a_t^T` over its inputs, of `g_t g_t^T`
over the gradients of its outputs. Reverse differentiation already visits every product once, with both at hand, and
already adds up what the visits yield. So a parameter is replaced by a `Tapped` node that holds its value beside dummy
arrays of the shapes of the sums, and the functions here, identities on their outputs, *define* the derivative with
respect to a dummy to be the sum wanted of it. Nothing else is needed: no hooks, no stored activations, and because
the sums are ordinary cotangents they pass through `lax.scan` (a stacked parameter has stacked dummies),
`jax.checkpoint`, `jax.jit`, meshes and microbatches like any gradient.

A model takes part by using its matrices through `matmul` and `lookup` (and, to save time, its vectors through `scale`
and `shift`). On plain arrays these are the operations of their names and cost nothing. Inputs have the example axis
first, `x[b, ..., i]`; all axes between it and the last are positions of example b.

What a dummy collects, by name. A position is *relevant* where the gradient of some output of its call is not zero;
padding behind the last loss token is not.

| name | shape | sum |
| --- | --- | --- |
| `A` | [i, i], or [i] for its diagonal | `a_t a_t^T` over relevant positions; for a look-up [V], reads of each row |
| `N` | [] | the number of relevant positions |
| `G` | [o, o], or [o] | `g_t g_t^T` |
| `S` | that of the parameter | squares of each example's gradient, a matrix's in the eigenbasis given |
| `X`, `Y` | inputs (ids for a look-up), outputs | the inputs themselves, and the gradients of the outputs |

References: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network architectures", NeurIPS 2023.
"""

from jaxunlearn.taps.node import Probe, Tapped, Taps, Use, axes_of_sum, lay_out, value
from jaxunlearn.taps.operations import looked_up, lookup, matmul, products, scale, shift

__all__ = [
    "Probe",
    "Tapped",
    "Taps",
    "Use",
    "axes_of_sum",
    "lay_out",
    "looked_up",
    "lookup",
    "matmul",
    "products",
    "scale",
    "shift",
    "value",
]
