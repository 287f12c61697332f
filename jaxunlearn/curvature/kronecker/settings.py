"""What is approximated, and how: the settings that the recipes `KFAC` and `EKFAC` share."""

from dataclasses import dataclass

FISHERS = ("true", "empirical")
LABELS = ("sampled", "exact")
EIGEN = ("device", "host")


@dataclass(frozen=True)
class Settings:
    """Settings of a Kronecker-factored curvature, validated.

    The matrix that is approximated is, with `n = sum_t w_t` loss tokens of weights `w_t`,

        F = (1/n) sum_b E[u_b u_b^T],     u_b = sum_t sqrt(w_t) grad nll_t    over the loss tokens t of example b.

    With `fisher="true"` the labels in `nll_t` are the model's own, independent draws: terms of different tokens
    vanish in expectation and F is the Fisher information per loss token, which is the Gauss-Newton matrix of the mean
    NLL. With `fisher="empirical"` they are those of the data and there is no expectation.

    A model that has memorised is sure of its answers, so its Fisher matrix nearly vanishes there, and says nothing of
    what happens once it has moved far enough to be less sure. With a `temperature` T above 1 it is that of softened
    answers,

        F_T = (1/n) sum_t w_t J_t^T (diag(q_t) - q_t q_t^T) J_t,     q_t = softmax(z_t / T),  J_t = d z_t / d theta,

    so that `d.F_T d / (2 T^2)` predicts `KL(q before || q after)` (Hinton et al. 2015 soften answers for the same
    reason: what a sure model says of the other tokens carries information, too).

    Attributes:
        fisher: "true" or "empirical".
        labels: for the true Fisher, "sampled" (unbiased) or "exact": the expectation itself, by P V backward passes
            for P places with loss and V classes, so for small problems only.
        samples: draws of labels for each token; more of them lower the noise of the sampled Fisher.
        temperature: T, by which the logits are divided before the softmax whose Fisher matrix this is.
        seed: of the draws. The same seed gives the same labels to the same row, whatever the microbatch or the mesh.
        microbatch: examples at a time; None takes the batch whole. Second moments hold, for one matrix at a time, one
            gradient an example of the microbatch.
        only: patterns (`fnmatch`) of the parameter paths that have curvature; the others have none and cost nothing.
        diagonal: patterns of the paths to be approximated by the diagonal, from per-example gradients.
        max_side: longest side of a matrix to get a full factor; a longer one gets a diagonal factor.
        eigen: "device", or "host" for eigenvectors in float64 by LAPACK (outside of `jax.jit` only).

    Raises:
        ValueError: naming the argument and its value.
    """

    fisher: str = "true"
    labels: str = "sampled"
    samples: int = 1
    temperature: float = 1.0
    seed: int = 0
    microbatch: int | None = None
    only: tuple[str, ...] = ("*",)
    diagonal: tuple[str, ...] = ()
    max_side: int = 8192
    eigen: str = "device"

    def __post_init__(self):
        name = type(self).__name__
        for field, known in (("fisher", FISHERS), ("labels", LABELS), ("eigen", EIGEN)):
            if getattr(self, field) not in known:
                raise ValueError(f"{name}({field}={getattr(self, field)!r}): choose one of {', '.join(known)}")
        for field in ("samples", "max_side"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}({field}={getattr(self, field)}): it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"{name}(temperature={self.temperature}): it must be positive")
        if self.temperature != 1 and self.fisher == "empirical":
            raise ValueError(f"{name}(temperature={self.temperature}): only the true Fisher has softened labels")
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"{name}(microbatch={self.microbatch}): use at least 1, or None for the whole batch")
        for field in ("only", "diagonal"):
            if isinstance(getattr(self, field), str):
                raise ValueError(f"{name}({field}={getattr(self, field)!r}): give a tuple of patterns")
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.samples > 1 and (self.fisher == "empirical" or self.labels == "exact"):
            raise ValueError(f"{name}(samples={self.samples}): only sampled labels of the true Fisher can be redrawn")
