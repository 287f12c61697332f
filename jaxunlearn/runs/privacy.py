"""What a private fine-tuning run promises: settings as a mechanism, the guarantee in its record and on its card."""

from collections.abc import Sequence

from jaxunlearn.accounting import SampledGaussian, calibrate, capacity_for
from jaxunlearn.data import Record, steps_per_epoch
from jaxunlearn.data.records import normalised
from jaxunlearn.runs.settings import Finetune

ADJACENCY = "add or remove one record"


def mechanism_of(settings: Finetune, records: int) -> SampledGaussian | None:
    """Sampling, steps and noise that the settings ask for; None for a run that is not private.

    Raises:
        ValueError: settings that contradict each other or promise nothing.
    """
    asked = settings.private
    if asked.private_epsilon is None and asked.noise_multiplier is None:
        for name in ("private_delta", "clip_norm", "private_rows"):
            if getattr(asked, name) is not None:
                raise ValueError(
                    f"{_flag(name)} {getattr(asked, name)} without --private-epsilon or --noise-multiplier would "
                    "train without privacy; give one of them"
                )
        return None
    if asked.private_epsilon is not None and asked.noise_multiplier is not None:
        raise ValueError(
            f"--private-epsilon {asked.private_epsilon} and --noise-multiplier {asked.noise_multiplier}: one follows "
            "from the other; give one"
        )
    for name in ("private_epsilon", "noise_multiplier", "clip_norm"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{_flag(name)} {value}: give a positive number")
    if asked.private_rows is not None and asked.private_rows < 1:
        raise ValueError(f"--private-rows {asked.private_rows}: at least one gradient is in memory")
    if asked.private_delta is None:
        raise ValueError(f"a private run needs --private-delta, well below 1 / {records} (one over the records)")
    if not 0 < asked.private_delta < 1 / records:
        raise ValueError(
            f"--private-delta {asked.private_delta}: give a probability above 0 and below 1 / {records} (one over the "
            "records); with more, publishing a whole record would count as private"
        )
    if settings.stop_at_loss is not None:
        raise ValueError(
            f"--stop-at-loss {settings.stop_at_loss}: where a private run stops must not depend on the records; "
            "choose --epochs"
        )
    if settings.batch_size > records:
        raise ValueError(f"--batch-size {settings.batch_size}: choose at most {records}, the number of records")
    steps = settings.epochs * steps_per_epoch(records, settings.batch_size)
    expected, capacity = float(settings.batch_size), capacity_for(records, settings.batch_size, steps)
    if asked.noise_multiplier is not None:
        return SampledGaussian(records, expected, capacity, steps, asked.noise_multiplier)
    return calibrate(
        asked.private_epsilon,
        asked.private_delta,
        records=records,
        expected=expected,
        capacity=capacity,
        steps=steps,
    )


def check_watched(settings: Finetune, trained: Sequence[Record], looked_at: Sequence[Record]) -> None:
    """What ends a private run, or chooses among its models, is measured on other records, or the noise covers it not.

    Args:
        settings: of the run.
        trained: its records.
        looked_at: those that rules are measured on.

    Raises:
        ValueError: rules that are measured on the records, or on what cannot be told from them.
    """
    watching = settings.watching
    if not (watching.stop_when or watching.keep_while):
        return
    if watching.evaluate_data:
        raise ValueError(
            f"--evaluate-data {watching.evaluate_data[0]}: the rules of a private run are measured on records that can "
            "be told from those it is trained on; give --forget, --retain or --holdout instead"
        )
    known = {normalised(record): record for record in trained}
    shared = next((record for record in looked_at if normalised(record) in known), None)
    if shared is not None:
        raise ValueError(
            f"{shared.where} is also at {known[normalised(shared)].where}: where a private run stops, and which of its "
            "models is kept, must not depend on its records; let rules look at others"
        )


def guarantee(mechanism: SampledGaussian, clip_norm: float, delta: float) -> dict:
    """The facts of the run's record."""
    from importlib.metadata import version

    return {
        "epsilon": mechanism.epsilon(delta),
        "delta": delta,
        "adjacency": ADJACENCY,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": clip_norm,
        "sampling": "Poisson, truncated to a random subset of the capacity",
        "sampling_rate": mechanism.sampling_rate,
        "expected_batch": mechanism.expected,
        "capacity": mechanism.capacity,
        "steps": mechanism.steps,
        "records": mechanism.records,
        "accountant": f"dp-accounting {version('dp-accounting')}, privacy loss distributions",
        "randomness": "drawn from the operating system, not recorded",
    }


def card(base: str, facts: dict, file: str, kept: int) -> str:
    """The README.md of the model, which is that after `kept` steps."""
    rest = "" if kept == facts["steps"] else f"; the model is that after {kept}, chosen by looks at other records"
    return (
        "# Privately fine-tuned model\n\n"
        f"Made by jaxunlearn from `{base}` with DP-SGD on {facts['records']} records: "
        f"({facts['epsilon']:.4g}, {facts['delta']:.4g})-differentially private, where data sets are neighbours that "
        f"differ by one record ({facts['adjacency']}).\n\n"
        f"- {facts['steps']} steps of Adam on gradients clipped to norm {facts['clip_norm']:.4g}, noise multiplier "
        f"{facts['noise_multiplier']:.4g}{rest}\n"
        f"- each record drawn with probability {facts['sampling_rate']:.4g} in each step, at most {facts['capacity']} "
        "at once\n"
        f"- accountant: {facts['accountant']}\n\n"
        "The guarantee is about the weights in this folder and about one record: somebody with k records is left with "
        "k times the epsilon and a larger delta. It does not cover what the starting checkpoint, its tokenizer or the "
        f"choice of settings knew of the records, nor `{file}`, which holds exact losses and hashes of the data: leave "
        "that file out where the records must stay secret. Floating-point noise only approaches the exact noise of "
        "the theory.\n"
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
