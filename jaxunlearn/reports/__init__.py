"""Showing what was measured: tables for the terminal and Markdown, pictures, and one self-contained page."""

from jaxunlearn.reports.evidence import Evidence, verdict_of, write_report
from jaxunlearn.reports.figures import Figure, plane_points
from jaxunlearn.reports.layout import Cell, Layout, Row, lay_out, number
from jaxunlearn.reports.page import Answer, Gap, Identity, write_page
from jaxunlearn.reports.plots import Point, curves, forget_keep_plane
from jaxunlearn.reports.table import side_by_side, to_markdown
from jaxunlearn.reports.verdict import Verdict, judge

__all__ = [
    "Answer",
    "Cell",
    "Evidence",
    "Figure",
    "Gap",
    "Identity",
    "Layout",
    "Point",
    "Row",
    "Verdict",
    "curves",
    "forget_keep_plane",
    "judge",
    "lay_out",
    "number",
    "plane_points",
    "side_by_side",
    "to_markdown",
    "verdict_of",
    "write_page",
    "write_report",
]
