"""`jaxunlearn compare RUN REFERENCE`: two result files side by side, ours or those of TOFU or OpenUnlearning."""

from typing import TYPE_CHECKING, Any

from jaxunlearn import evals
from jaxunlearn.evals.against import ROUNDED, UNROUNDED, against
from jaxunlearn.evals.logs import read_log, read_result
from jaxunlearn.evals.open_unlearning import open_unlearning
from jaxunlearn.runs import record as records
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Compare

if TYPE_CHECKING:
    from rich.table import Table


def compare(settings: Compare) -> dict[str, Any]:
    """Run it; returns what was found.

    Raises:
        ValueError: bad input, or an existing output file.
    """
    if settings.out is None:
        records.refuse_result(settings.open_unlearning, "--open-unlearning")
    else:
        records.refuse_result(settings.out)
        records.refuse_files(open_unlearning=settings.open_unlearning)
    if settings.limit is not None and settings.limit < 1:
        raise ValueError(f"--limit {settings.limit}: give a number of at least 1")
    run = read_log(settings.run, settings.column)
    reference = read_log(settings.reference, settings.reference_column)
    found = against(run, reference, examples=settings.limit, seed=settings.seed)
    converted = None
    if settings.open_unlearning is not None:
        converted = open_unlearning(read_result(settings.run, settings.column))
    with Reporter() as reporter:
        for line in _sentences(found):
            reporter.say(line)
        if found["metrics"]:
            reporter.console.print(_table(found["metrics"]))
        if settings.out is not None:
            facts = {"run": str(settings.run), "reference": str(settings.reference)}
            kinds = {"kinds": [run.kind, reference.kind], "examples": settings.limit, "seed": settings.seed}
            evals.write_result(settings.out, {**facts, **kinds, **found})
            reporter.say(f"all numbers -> {settings.out}")
        if converted is not None:
            evals.write_result(settings.open_unlearning, converted)
            reporter.say(f"{settings.run} in OpenUnlearning's form -> {settings.open_unlearning}")
        written = settings.out or settings.open_unlearning
        if written is not None:
            records.write_options(written, "compare", settings)
    return found


def _sentences(found: dict[str, Any]) -> list[str]:
    quality, utility = found["forget_quality"], found["model_utility"]
    if "skipped" in quality:
        lines = [f"Forget Quality: {quality['skipped']}"]
    else:
        low, high = quality["ks_interval"]
        mine, theirs = quality["n"]
        lines = [
            f"Forget Quality over {mine} and {theirs} questions: KS {quality['ks_statistic']:.6f} "
            f"(95% interval {low:.3f} to {high:.3f}), p {quality['p_value']:.6e}, log10 p {quality['log10_p']:.4f}"
        ]
    for who, numbers in utility.items():
        if "skipped" in numbers:
            lines.append(f"Model Utility, {who}: {numbers['skipped']}")
            continue
        line = f"Model Utility, {who}: {numbers[ROUNDED]:.6f} ({ROUNDED}), {numbers[UNROUNDED]:.6f} ({UNROUNDED})"
        if "interval" in numbers:
            line += ", 95% interval {:.4f} to {:.4f}".format(*numbers["interval"])
        lines.append(line)
    return lines


def _table(metrics: dict[str, dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title="Run against reference", title_justify="left")
    table.add_column("metric")
    for head in ("run", "reference", "difference", "95% interval", "n"):
        table.add_column(head, justify="right")
    for name, row in metrics.items():
        interval = "{:.4f} to {:.4f}".format(*row["interval"]) if "interval" in row else ""
        sizes = " / ".join(str(n) for n in dict.fromkeys(row.get("n", ())))
        label = evals.METRICS[name].label if name in evals.METRICS else name
        table.add_row(label, *(f"{row[key]:.4f}" for key in ("run", "reference", "difference")), interval, sizes)
    return table
