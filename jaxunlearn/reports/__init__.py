"""Showing what was measured: tables for the terminal and Markdown, two pictures, and one self-contained page."""

from jaxunlearn.reports.layout import Cell, Layout, Row, lay_out, number
from jaxunlearn.reports.page import Answer, Figure, write_page
from jaxunlearn.reports.plots import Point, curves, forget_keep_plane
from jaxunlearn.reports.table import side_by_side, to_markdown
from jaxunlearn.reports.verdict import Verdict, judge

__all__ = [
    "Answer",
    "Cell",
    "Figure",
    "Layout",
    "Point",
    "Row",
    "Verdict",
    "curves",
    "forget_keep_plane",
    "judge",
    "lay_out",
    "number",
    "side_by_side",
    "to_markdown",
    "write_page",
]
