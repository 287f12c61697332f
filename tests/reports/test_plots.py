"""Pictures: labels that do not collide, nothing dropped in silence, no trace left in matplotlib's global state."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxunlearn.reports import Point, curves, forget_keep_plane
from jaxunlearn.reports.inline import inline_svg
from jaxunlearn.reports.labels import place_labels

POINTS = [Point("before", 7.6, 0.003, "before"), Point("npo", 6.4, 0.2), Point("matching", 2.1, 0.013, "lead")]


def test_labels_of_a_crowd_do_not_overlap():
    figure = Figure(figsize=(9, 6), dpi=100)
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    points = [(5 + 0.12 * math.cos(i), 5 + 0.12 * math.sin(i)) for i in range(7)] + [(9.9, 9.9), (0.1, 0.1)]
    ax.set(xlim=(0, 10), ylim=(0, 10))
    notes = place_labels(ax, points, [f"method_number_{i}" for i in range(9)], ["#000000"] * 9, ink="#000000")
    renderer = figure.canvas.get_renderer()
    boxes = [note.get_window_extent(renderer) for note in notes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = ax.get_window_extent(renderer)
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)
    pixels = ax.transData.transform(points)
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


def test_png_is_1200_by_800_and_svg_is_well_formed(tmp_path):
    forget_keep_plane(POINTS, tmp_path / "plane.png", floor=(2.6, 0.004))
    assert Image.open(tmp_path / "plane.png").size == (1200, 800)
    assert ET.fromstring(forget_keep_plane(POINTS, floor=(2.6, 0.004))).tag.endswith("svg")


def test_a_dollar_in_a_name_is_no_mathematics():
    name = "costs $5 and $x{$"
    assert b"<svg" in forget_keep_plane([Point(name, 2.0, 0.1), Point(name, math.nan, 0.1)])
    assert b"<svg" in curves({name: [{name: 1.0}], "_hidden": [{name: 2.0}]})


def test_zero_and_non_finite_points_are_drawn_or_named():
    svg = forget_keep_plane([*POINTS, Point("same", 0.0, 0.0, "retrained"), Point("lost", math.nan, 1.0)], floor=(0, 0))
    assert "Not finite, not drawn: lost" in svg.decode()
    assert ">same</text>" in svg.decode()
    with pytest.raises(ValueError, match="no model with a finite divergence"):
        forget_keep_plane([Point("lost", math.inf, 1.0)])


def test_names_in_any_script_stay_letters_and_nobody_is_warned_of_glyphs(recwarn):
    svg = forget_keep_plane([*POINTS, Point("模型 $x_", 3, 0.1)])
    assert ">模型 $x_</text>" in inline_svg(svg, name="plane", alt="A plane")
    assert [str(one.message) for one in recwarn] == []


def test_lines_of_many_runs_differ_in_more_than_colour():
    """Of 8 runs no two have the same dashes and dots, of 24 none the same look: both are in the file."""
    svg = curves({f"run {i}": [{"loss": float(i)}] * 2 for i in range(24)}).decode()
    lines = re.findall(r'<g id="line2d_\d+">\s*<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"/>(.*?)</g>', svg, re.S)
    looks = []
    for style, rest in lines:
        if "1.8" in style:  # not the grid
            colour, dashes = (re.search(rf"{key}: ([^;]*)", style) for key in ("stroke", "stroke-dasharray"))
            looks.append((dashes and dashes[1], re.findall(r'<path id="[^"]*" d="([^"]*)"', rest)[:1], colour[1]))
    assert len(looks) == 24
    assert len({str(look[:2]) for look in looks[:8]}) == 8
    assert len({str(look) for look in looks}) == 24


def test_curves_skip_what_a_run_lacks_and_refuse_nothing():
    runs = {"a": [{"step": 1, "loss": 2.0}, {"step": 5, "loss": math.nan, "kl": 0.1}], "b": [{"kl": 0.2}]}
    assert ET.fromstring(curves(runs, targets={"loss": 1.0}, titles={"kl": "KL"})).tag.endswith("svg")
    with pytest.raises(ValueError, match="no step with a value"):
        curves({"a": []})


def test_existing_files_and_unknown_formats_are_refused(tmp_path):
    taken = tmp_path / "plane.svg"
    taken.write_text("mine")
    with pytest.raises(ValueError, match="not overwritten"):
        forget_keep_plane(POINTS, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(ValueError, match="not 'jpeg'"):
        forget_keep_plane(POINTS, tmp_path / "plane.jpeg")


def test_global_state_of_matplotlib_is_untouched():
    before = dict(matplotlib.rcParams)
    forget_keep_plane(POINTS)
    curves({"a": [{"loss": 1.0}, {"loss": 2.0}]})
    assert dict(matplotlib.rcParams) == before


def test_inline_pictures_refer_to_nothing_outside_and_share_no_ids():
    svg = forget_keep_plane([*POINTS, Point("<script>x</script> --> &", 3, 0.1)], floor=(2.6, 0.004))
    first, second = inline_svg(svg, name="one", alt='A "plane"'), inline_svg(svg, name="two", alt="again")
    assert "http" not in first
    assert "<script" not in first
    assert 'aria-label="A &quot;plane&quot;"' in first
    ids = [
        {element.get("id") for element in ET.fromstring(text).iter() if element.get("id")} for text in (first, second)
    ]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        links = [e.get("href") for e in ET.fromstring(text).iter() if e.get("href")]
        assert links
        assert all(link[1:] in own for link in links)
    again = forget_keep_plane([*POINTS, Point("<script>x</script> --> &", 3, 0.1)], floor=(2.6, 0.004))
    assert inline_svg(again, name="one", alt='A "plane"') == first
    with pytest.raises(ValueError, match="must be an SVG"):
        inline_svg(b"\x89PNG", name="p", alt="")
