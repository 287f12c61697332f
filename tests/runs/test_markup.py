"""Names, templates and messages are shown as they are: none of a user's words is markup of the terminal's."""

import io

import pytest
from rich.console import Console

from jaxunlearn.data.canaries import CanaryTemplate
from jaxunlearn.data.canary_key import Canary
from jaxunlearn.evals.attacks.exposure import Exposure
from jaxunlearn.reports import side_by_side
from jaxunlearn.runs import bench, canary, compare, doctor, plan
from jaxunlearn.runs.board import board
from jaxunlearn.runs.doctor import Line
from jaxunlearn.runs.plan import Estimate
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Doctor
from jaxunlearn.runs.throughput import Row

NAME = "[bold]x[/] [/red]"  # the second half would be an error of its own


def of_models():
    missing = {"skipped": f"no {NAME}"}
    return side_by_side({NAME: {"forget_kl": missing}, "other": {"forget_kl": {"agg_value": 1.0}}}, title=NAME)


def of_products():
    return bench.table([Row(NAME, 1.0, 1.0, 1), Row("other", error=NAME)], 1, 1.0, NAME)


def of_canaries():
    one = Canary(CanaryTemplate(NAME + "{digits:1}"), 0, 1)
    return canary.table([one], [Exposure(1.0, (1.0, 1.0), "exact", 1.0, 1.0, 10, 9)])


def of_programs():
    return plan._table([Estimate(NAME, NAME, {"data": 1}, 1, 1, 1, None, 1.0, [], {}, 0.0)], NAME)


def of_metrics():
    return compare._table({NAME: {"run": 1.0, "reference": 1.0, "difference": 0.0}})


@pytest.mark.parametrize("table", [of_models, of_products, of_canaries, of_programs, of_metrics])
def test_tables(table):
    console = Console(file=io.StringIO(), width=300, color_system="truecolor", force_terminal=True)
    console.print(table())
    assert NAME in console.file.getvalue()


def test_a_stage_on_a_terminal():
    console = Console(file=io.StringIO(), width=300, force_terminal=True)
    with board(console) as bar:
        bar.add_task(NAME, total=1, facts={})
        bar.refresh()
        console.print(bar.get_renderable())
    assert NAME in console.file.getvalue()


def test_what_a_reporter_says(capsys):
    with Reporter() as reporter:
        reporter.say(NAME)
        reporter.warn(NAME)
        with reporter.stage(NAME, 1):
            pass
    assert capsys.readouterr().out.count(NAME) == 3


def test_doctor(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_machine", lambda: [Line(NAME, NAME), Line("broken", "value", NAME)])
    doctor.doctor(Doctor(check=False))
    assert capsys.readouterr().out.count(NAME) == 3
