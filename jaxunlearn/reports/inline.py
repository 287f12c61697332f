"""A matplotlib SVG made fit to stand inside a page: no references to the outside, colours that follow the theme.

An SVG file names its dialect by web addresses, carries ids that clash with those of the next picture, and is drawn in
fixed ink on fixed paper. Inside HTML the addresses are needless, so they go; ids are numbered within the picture;
ink becomes the text colour of the page, paper becomes transparent and the other colours become variables the page may
set anew, which is all a dark theme needs.
"""

import html
import re

from jaxunlearn.reports.canvas import INK, PALETTE, PAPER


def inline_svg(svg: bytes, *, name: str, alt: str) -> str:
    """The picture as an `<svg role="img">` element with `alt` as its accessible name.

    Args:
        svg: what `forget_keep_plane` or `curves` returned, format "svg".
        name: prefix of its ids, unique in the page.
        alt: what a reader who cannot see it must know.

    Errors:
        ValueError: the bytes hold no SVG.

    Example:
        >>> inline_svg(b'<svg width="2pt" viewBox="0 0 1 1"><g id="a"/></svg>', name="p", alt="A dot")
        '<svg role="img" aria-label="A dot" viewBox="0 0 1 1"><g/></svg>'
    """
    text = svg.decode("utf-8", errors="replace")
    found = re.search(r"<svg\b[^>]*>(.*)</svg>", text, re.DOTALL)
    if found is None:
        raise ValueError("a picture for the page must be an SVG; ask the plot for format='svg'")
    box = re.search(r'<svg\b[^>]*viewBox="([-\d. ]+)"', text)
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style\b.*?</style>", "", found[1], flags=re.DOTALL)
    body = _number_ids(body, name)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").strip()
    body = body.replace(f"fill: {PAPER}", "fill: none").replace(INK, "currentColor")
    for colour, fixed in PALETTE.items():
        body = body.replace(fixed, f"var(--{colour}, {fixed})")
    frame = f' viewBox="{box[1]}"' if box else ""
    return f'<svg role="img" aria-label="{html.escape(alt)}"{frame}>{body}</svg>'


def _number_ids(body: str, name: str) -> str:
    """Ids that something refers to become name-1, name-2, ...; the others are dropped."""
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', body))
    numbered = {old: f"{name}-{i}" for i, old in enumerate(used, start=1)}
    body = re.sub(r'\s*\bid="([^"]*)"', lambda m: f' id="{numbered[m[1]]}"' if m[1] in numbered else "", body)
    body = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{numbered[m[1]]}"', body)
    return re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{numbered[m[1]]})", body)
