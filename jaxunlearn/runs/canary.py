"""`jaxunlearn canary insert` and `score`: secrets put into training records, and asked back from a model."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxunlearn import data, models
from jaxunlearn.data.canaries import CanaryTemplate
from jaxunlearn.data.canary_key import Canary, key_rows, read_key
from jaxunlearn.data.canary_key import insert as insert_among
from jaxunlearn.evals import Measure, write_result
from jaxunlearn.evals.attacks.canaries import candidates_among, exposure_measure, exposures_among
from jaxunlearn.evals.attacks.exposure import Exposure
from jaxunlearn.files import new_file
from jaxunlearn.runs import dry_run_scoring
from jaxunlearn.runs import record as records
from jaxunlearn.runs.dry_run import told
from jaxunlearn.runs.evaluate import Counter
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.inputs import reader
from jaxunlearn.runs.needs import disk
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import CanaryInsert, CanaryScore, Text

if TYPE_CHECKING:
    from rich.table import Table

COPIES = (1, 4, 16)


def insert(settings: CanaryInsert) -> list[Canary]:
    """Run it; returns the key, which `--dry-run` does not write.

    Raises:
        ValueError: bad input, or an output that exists, before anything is written.
    """
    if settings.out.resolve() == settings.key.resolve():
        raise ValueError(f"--out and --key are both {settings.out}: the key must be a file of its own")
    records.refuse_result(settings.out)
    records.refuse_files(key=settings.key)
    fields = settings.columns.fields
    if settings.count < 1:
        raise ValueError(f"--count {settings.count}: insert at least one canary")
    if min(settings.copies, default=1) < 1:
        raise ValueError(f"--copies {min(settings.copies)}: insert a canary at least once")
    with of_flag("--template"):
        templates = [CanaryTemplate(text) for text in dict.fromkeys(settings.template)]
    read = [record for source in settings.data for record in data.read(source, fields=fields)]
    rows, key = insert_among(
        [record.raw for record in read],
        templates,
        count=settings.count,
        copies=settings.copies or COPIES,
        fields=fields,
        seed=settings.seed,
    )
    copies, texts = sum(one.copies for one in key), (_lines(key_rows(key, fields)), _lines(rows))
    if settings.dry_run:
        with told("canary insert", settings.out) as (_, shown):
            shown["records"] = f"{len(read):,}"
            shown["canaries"] = f"{len(key):,} of {len(templates)} templates, {copies:,} copies in all"
            shown["disk"] = disk(settings.out, sum(len(text.encode()) for text in texts))
            shown["key"] = f"{settings.key}, which is not there yet"
        return key
    with new_file(settings.key) as key_file, new_file(settings.out) as out:
        key_file.write_text(texts[0], encoding="utf-8")
        out.write_text(texts[1], encoding="utf-8")
    records.write_options(settings.out, "canary insert", settings)
    with Reporter() as reporter:
        reporter.say(f"{len(read)} records and {len(key)} canaries, {copies} copies in all -> {settings.out}")
        reporter.say(f"the key: {settings.key}. Whoever has it has the secrets.")
    return key


def score(settings: CanaryScore) -> Measure | None:
    """Run it; returns the measure `canary_exposure`, None with `--dry-run`.

    Raises:
        ValueError: bad input, or an existing output file, before any weight is loaded.
    """
    records.refuse_result(settings.out)
    if settings.candidates < 2 or settings.batch_size < 1:
        raise ValueError(
            f"--candidates {settings.candidates}, --batch-size {settings.batch_size}: give at least 2 and at least 1"
        )
    folder = models.resolve(settings.model, weights=not settings.dry_run)
    key, reads = read_key(settings.key), reader(folder, Text(max_length=settings.max_length))
    how = {"method": settings.ranks, "seed": settings.seed}
    among = candidates_among(key, reads.tokenizer, max_length=reads.max_length, candidates=settings.candidates, **how)
    if settings.dry_run:
        dry_run_scoring.canary_score(settings, among)
        return None
    mesh = settings.devices.make_mesh()
    with Reporter() as reporter:
        model, params = models.load(folder, mesh=mesh)
        with reporter.stage("scoring candidates", sum(len(one.encoded) for one in among)) as stage:
            found = exposures_among(
                model,
                params,
                key,
                among,
                batch_size=settings.batch_size,
                mesh=mesh,
                progress=Counter(stage),
                **how,
            )
        reporter.console.print(table(key, found))
        measure = exposure_measure(key, found, settings.seed)
        if settings.out is not None:
            write_result(settings.out, {"canary_exposure": measure})
            records.write_options(settings.out, "canary score", settings)
            reporter.say(f"all numbers -> {settings.out}")
    return measure


def table(key: Sequence[Canary], found: Sequence[Exposure]) -> "Table":
    """Exposure of each canary, the most exposed first."""
    from rich.table import Table
    from rich.text import Text as Plain

    shown = Table(
        title="Exposure of canaries",
        caption="bits: log2 |R| if the model would guess the secret first; 1.44 on average if it never saw it.",
        caption_justify="left",
        title_justify="left",
    )
    for name, justify in (("template", "left"), ("copies", "right"), ("bits", "right"), ("interval", "right"),
                          ("of", "right"), ("rank", "right"), ("method", "left")):  # fmt: skip
        shown.add_column(name, justify=justify)

    for one, value in sorted(zip(key, found, strict=True), key=lambda pair: -pair[1].bits):
        fit = "" if value.fit_p_value is None else f", KS p {value.fit_p_value:.2g}"
        low, high = value.interval
        shown.add_row(
            Plain(one.template.text),
            str(one.copies),
            f"{value.bits:.2f}",
            "exact" if value.method == "exact" else f"{low:.2f} to {high:.2f}",
            f"{math.log2(value.space):.2f}",
            f"{value.rank:.4g}",
            f"{value.method}, {value.candidates} others{fit}",
        )
    return shown


def _lines(rows: Sequence) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
