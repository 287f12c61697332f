"""What a run of noisy sums costs in privacy: the sampled Gaussian mechanism and its (epsilon, delta).

A randomised algorithm M is (epsilon, delta)-differentially private when, for every two data sets D and D' of which one
is the other with one record added, and every set S of outcomes,

    P(M(D) in S) <= exp(epsilon) P(M(D') in S) + delta

Here M releases `steps` sums. For each of them every record is drawn by itself with probability q (Poisson sampling);
where more than `capacity` are drawn, a uniformly random `capacity` of them stay (truncation, which makes shapes
fixed); each record adds a vector of norm at most C; and Gaussian noise of standard deviation sigma C is added to every
coordinate. What is computed from the sums, such as Adam's steps, costs nothing more.

The numbers come from dp-accounting's privacy loss distributions (`PLDAccountant`), which round against us: the epsilon
given is an upper bound, for truncated sampling too. The bound holds for exact real Gaussian noise (floating point only
approaches it) that nobody can predict: whoever knows the seed of the generator can subtract it. The number of records,
q and the number of steps count as public.

References: Dwork and Roth, "The algorithmic foundations of differential privacy", 2014; Abadi et al., "Deep learning
with differential privacy", CCS 2016; Doroshenko et al., "Connect the dots: tighter discrete approximations of privacy
loss distributions", PETS 2022; arXiv 2508.15089 on truncated Poisson sampling.
"""

from dataclasses import dataclass, replace

COARSE = 1e-3
FINE = 1e-4
TOLERANCE = 1e-3


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` sums over truncated Poisson samples, each with Gaussian noise.

    Attributes:
        records: n, size of the data set whose neighbours have one record fewer.
        expected: records drawn on average, `q n`; at most n.
        capacity: most records of one sum.
        steps: number of sums.
        noise_multiplier: sigma, noise standard deviation in units of the clipping norm.

    Example:
        >>> all_at_once = SampledGaussian(records=100, expected=100, capacity=100, steps=1, noise_multiplier=1.0)
        >>> round(all_at_once.epsilon(1e-5), 2)  # the Gaussian mechanism, in closed form 4.377
        4.38
    """

    records: int
    expected: float
    capacity: int
    steps: int
    noise_multiplier: float

    def __post_init__(self):
        if not 0 < self.expected <= self.records:
            raise ValueError(
                f"SampledGaussian(expected={self.expected}, records={self.records}): a sample holds more than 0 and on "
                "average at most all of the records; choose a smaller batch"
            )
        if not 1 <= self.capacity <= self.records:
            raise ValueError(
                f"SampledGaussian(capacity={self.capacity}): choose 1 to {self.records}, the number of records"
            )
        if self.steps < 1:
            raise ValueError(f"SampledGaussian(steps={self.steps}): at least one step is needed")
        if not self.noise_multiplier > 0:
            raise ValueError(
                f"SampledGaussian(noise_multiplier={self.noise_multiplier}): without noise nothing is private; give a "
                "positive multiple of the clipping norm"
            )

    @property
    def sampling_rate(self) -> float:
        """q: the probability with which a record is drawn in a step."""
        return self.expected / self.records

    def epsilon(self, delta: float) -> float:
        """The epsilon spent at `delta`, an upper bound at most about 1% above the true one.

        Raises:
            ValueError: delta outside (0, 1).
        """
        _check_delta(delta)
        # Finer than the grid of `calibrate` for the same epsilon, which the first, coarse value may exceed a little.
        return self._epsilon(delta, _interval(0.8 * self._epsilon(delta, COARSE)))

    def _epsilon(self, delta: float, interval: float) -> float:
        return _accountant(interval).compose(self._event()).get_epsilon(delta)

    def _event(self):
        import dp_accounting

        one = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            self.records, self.sampling_rate, self.capacity, self.noise_multiplier
        )
        return dp_accounting.SelfComposedDpEvent(one, self.steps)


def calibrate(
    epsilon: float, delta: float, *, records: int, expected: float, capacity: int, steps: int
) -> SampledGaussian:
    """The least noise that costs at most `epsilon` at `delta`.

    Args:
        epsilon: what may be spent, > 0.
        delta: in (0, 1).
        records: see `SampledGaussian`, as the others.
        expected: records drawn on average.
        capacity: most records of one sum.
        steps: number of sums.

    Returns:
        A `SampledGaussian`, its `noise_multiplier` never too small and about 0.2% too large at most.

    Raises:
        ValueError: epsilon not positive, delta outside (0, 1), or an epsilon so large that hardly any noise is left.

    Example:
        >>> found = calibrate(4.377, 1e-5, records=100, expected=100, capacity=100, steps=1)
        >>> round(found.noise_multiplier, 2)
        1.0
    """
    _check_delta(delta)
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon}: the privacy to spend must be positive")
    start = SampledGaussian(records, expected, capacity, steps, 1.0)
    # Truncation makes the accounting ten times dearer and, where it hardly ever happens, no different.
    found = _least_noise(replace(start, capacity=records), epsilon, delta)
    if capacity == records:
        return found
    found = replace(found, capacity=capacity, noise_multiplier=(1 + TOLERANCE) * found.noise_multiplier)
    if found._epsilon(delta, _interval(epsilon)) <= epsilon:
        return found
    return _least_noise(start, epsilon, delta, high=2 * found.noise_multiplier)


def _least_noise(run: SampledGaussian, epsilon: float, delta: float, high: float = 64.0) -> SampledGaussian:
    import dp_accounting

    interval = _interval(epsilon)

    def spent(sigma: float) -> float:
        return replace(run, noise_multiplier=sigma)._epsilon(delta, interval)

    # Little noise makes wide distributions, whose accounting takes minutes: the search comes from above.
    while spent(high) > epsilon:
        high *= 2
    low = high / 2
    while spent(low) <= epsilon:
        low, high = low / 2, low
        if low < 0.1:
            raise ValueError(f"epsilon={epsilon} leaves hardly any noise and protects nobody; choose a smaller one")
    sigma = dp_accounting.calibrate_dp_mechanism(
        lambda: _accountant(interval),
        lambda sigma: replace(run, noise_multiplier=sigma)._event(),
        epsilon,
        delta,
        dp_accounting.ExplicitBracketInterval(low, high),
        tol=TOLERANCE * low,
    )
    return replace(run, noise_multiplier=sigma)


def capacity_for(records: int, expected: float, steps: int, chance: float = 1e-6) -> int:
    """The least capacity that some Poisson sample of the run exceeds with probability at most `chance`.

    Example:
        >>> capacity_for(10_000, 64, 1000)
        117
        >>> capacity_for(10, 8, 1000)
        10
    """
    from scipy import stats

    return max(1, int(stats.binom.isf(chance / steps, records, expected / records)))


def _accountant(interval: float):
    from dp_accounting import pld

    return pld.PLDAccountant(value_discretization_interval=interval)


def _interval(epsilon: float) -> float:
    """Discretisation of the privacy loss: its error grows with the steps, its cost with the epsilon."""
    return min(COARSE, FINE * max(1.0, epsilon))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: a probability above 0 and below 1 is needed, well below 1 / records")
