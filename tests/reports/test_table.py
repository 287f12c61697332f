"""The table says the same everywhere: values, wanted direction, seed floor, and what is missing and why."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxunlearn.evals.result import broken, measured, skipped
from jaxunlearn.reports import lay_out, number, side_by_side, to_markdown


def result(**values):
    return {name: measured(name, np.array([value])) for name, value in values.items()}


RESULTS = {
    "before": result(forget_kl=7.6, retain_kl=0.004, retain_probability=0.99, forget_loss_auc=1.0),
    "after": result(forget_kl=2.06, retain_kl=0.013, retain_probability=0.98, forget_loss_auc=0.48),
    "retrained": result(forget_kl=0.0, retain_kl=0.0, retain_probability=0.99, forget_loss_auc=0.51),
}
FLOOR = {"forget_kl": 2.6, "retain_kl": 0.004}


def text(table, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_values_at_or_under_the_floor_are_marked_and_the_reference_itself_is_not():
    rows = {row.label: row for row in lay_out(RESULTS, floor=FLOOR).rows}
    assert [cell.mark for cell in rows["KL to retrained, forget"].cells] == ["", "good", ""]
    assert [cell.mark for cell in rows["KL to retrained, retain"].cells] == ["good", "", ""]
    assert rows["KL to retrained, forget"].floor == "2.600"
    assert rows["Probability, retain"].floor == ""


def test_directions():
    rows = {row.label: row.direction for row in lay_out(RESULTS).rows}
    assert rows["KL to retrained, forget"] == "↓"
    assert rows["Probability, retain"] == "↑"
    assert rows["Loss attack AUC"] == "→ 0.5"


def test_a_metric_that_broke_stays_in_the_table_and_one_nobody_has_goes_to_the_notes():
    results = {
        "before": RESULTS["before"] | {"forget_truth_ratio": skipped("forget_truth_ratio", "no variants")},
        "after": RESULTS["after"]
        | {
            "forget_truth_ratio": skipped("forget_truth_ratio", "no variants"),
            "retain_kl": broken("retain_kl", "2 of 9 values not finite, the first at index 1"),
        },
    }
    layout = lay_out(results)
    assert "Truth ratio, forget" not in [row.label for row in layout.rows]
    assert "Truth ratio, forget: no variants." in layout.notes
    [kl] = [row for row in layout.rows if row.label == "KL to retrained, retain"]
    assert kl.cells[1] == ("–", "missing")
    assert "KL to retrained, retain (after): 2 of 9 values not finite, the first at index 1." in layout.notes


def test_p_values_below_float64_are_shown_by_their_logarithm():
    quality = measured("forget_quality", np.zeros(0), aggregate=0.0, log10_p=-421.3)
    assert lay_out({"m": {"forget_quality": quality}}).rows[0].cells[0].text == "1e-421"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.5, "0.500"), (-0.25, "-0.250"), (0.0004, "4.0e-04"), (1e-239, "1.0e-239"), (1234.5, "1234")],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_terminal_and_markdown_hold_the_same_cells():
    extra = {"Gradients": {"after": 1200}, "Time": {"after": "3 s"}}
    shown = text(side_by_side(RESULTS, floor=FLOOR, extra=extra, title="Run"))
    written = to_markdown(RESULTS, floor=FLOOR, extra=extra)
    for piece in ("7.600", "2.060", "2.600", "0.013", "seed floor", "1,200", "3 s", "after", "→ 0.5"):
        assert piece in shown
        assert piece in written
    assert "**2.060**" in written
    widths = {line.count("|") for line in written.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_markup_in_a_name_is_text():
    assert "[red]x[/red]" in text(side_by_side({"[red]x[/red]": RESULTS["after"]}))
    assert "a\\|b" in to_markdown({"a|b": RESULTS["after"]})


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one model"):
        lay_out({})
    with pytest.raises(ValueError, match="no metric is called 'forget_kll'"):
        lay_out(RESULTS, metrics=["forget_kll"])
