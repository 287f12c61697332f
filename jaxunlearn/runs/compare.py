"""`jaxunlearn compare RUN REFERENCE`: two result files side by side, ours or those of TOFU or OpenUnlearning; or all
metrics by how well they tell two pools of models apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxunlearn import evals
from jaxunlearn.evals.against import ROUNDED, UNROUNDED, against
from jaxunlearn.evals.catalogue import about, family
from jaxunlearn.evals.faithfulness import rank
from jaxunlearn.evals.logs import Log, read_log, read_logs, read_result
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
    if settings.faithfulness:
        return _faithfulness(settings)
    for name in ("more_run", "more_reference"):
        if getattr(settings, name):
            raise ValueError(f"--{name.replace('_', '-')} is for --faithfulness, which compares pools of models")
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


def _faithfulness(settings: Compare) -> dict[str, Any]:
    """The other question: which metrics tell models that know from models that never did."""
    for flag, given in (("--open-unlearning", settings.open_unlearning), ("--limit", settings.limit)):
        if given is not None:
            raise ValueError(f"{flag} {given} is about two results; --faithfulness is about pools of models")
    pools = (
        _pool((settings.run, *settings.more_run), settings.column),
        _pool((settings.reference, *settings.more_reference), settings.reference_column),
    )
    both = next((label for label in pools[0] if label in pools[1]), None)
    if both is not None:
        raise ValueError(f"{both} is among the models that know and among those that never knew: name it once")
    ranking = rank(*([log.aggregates for log in pool.values()] for pool in pools), seed=settings.seed)
    if not ranking.metrics:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(ranking.left_out.items())[:3])
        raise ValueError(f"no metric can be ranked ({reasons or 'the files hold none'}); evaluate all models alike")
    rows = {
        name: {"faithfulness": one.auc, "n": list(one.n), "knowing_is": said}
        # One model drawn again and again is no sample.
        | ({"interval": list(one.interval)} if min(one.n) > 1 else {})
        for name, (one, said) in ranking.metrics.items()
    }
    named = dict(zip(("knows", "never_knew"), map(list, pools), strict=True))
    found = {**named, "metrics": rows, "left_out": ranking.left_out, "seed": settings.seed}
    with Reporter() as reporter:
        counts = "{} that know and {} that never did".format(*map(len, pools))
        reporter.say(f"Faithfulness of {len(rows)} metrics over {counts}; {len(ranking.left_out)} left out")
        reporter.console.print(_ranking(rows))
        if settings.out is not None:
            evals.write_result(settings.out, found)
            records.write_options(settings.out, "compare", settings)
            reporter.say(f"all numbers -> {settings.out}")
    return found


def _pool(files: Sequence[Path], pattern: str) -> dict[str, Log]:
    """The models of some files, by file and column."""
    return {f"{file}: {column}": log for file in files for column, log in read_logs(file, pattern).items()}


def _ranking(rows: dict[str, dict[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Which metrics tell who knows", title_justify="left")
    table.add_column("metric")
    table.add_column("knowing is")
    for head in ("faithfulness", "95% interval"):
        table.add_column(head, justify="right")
    for name, row in rows.items():
        interval = "{:.4f} to {:.4f}".format(*row["interval"]) if "interval" in row else ""
        table.add_row(Text(about(name).label), row["knowing_is"], f"{row['faithfulness']:.4f}", interval)
    return table


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
    from rich.text import Text

    table = Table(title="Run against reference", title_justify="left")
    table.add_column("metric")
    for head in ("run", "reference", "difference", "95% interval", "n"):
        table.add_column(head, justify="right")
    for name, row in metrics.items():
        interval = "{:.4f} to {:.4f}".format(*row["interval"]) if "interval" in row else ""
        sizes = " / ".join(str(n) for n in dict.fromkeys(row.get("n", ())))
        label = about(name).label if family(name) else name
        table.add_row(Text(label), *(f"{row[key]:.4f}" for key in ("run", "reference", "difference")), interval, sizes)
    return table
