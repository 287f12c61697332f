"""The page in a real browser: it fetches nothing, sorts, reads well in light and dark, and fits a telephone."""

import shutil

import pytest

from .made import SECRET

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (the extra `test`)")
NAMES = ("chromium", "chromium-browser", "google-chrome")
SCHEMES = {"light": "rgb(253, 253, 252)", "dark": "rgb(22, 24, 27)"}  # and their paper
A4 = 718  # CSS pixels between the margins of Chromium's default print

# WCAG 2: luminance of sRGB, ratio (L1 + .05) / (L2 + .05); what is behind an element is the nearest opaque background.
CONTRASTS = """() => {
  const channel = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const rgb = numbers(getComputedStyle(e).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
    throw new Error("nothing opaque behind " + element.outerHTML);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    // Text in pictures is filled with currentColor or a variable.
    const front = numbers(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [luminance(front), luminance(behind(element))];
    found.push([text.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), style.opacity]);
  }
  return found;
}"""


# The same of the lines of all runs; what is see-through is the grid.
STROKES = """[...document.querySelectorAll("#runs ~ figure path")]
    .map((path) => [path, getComputedStyle(path)])
    .filter(([path, style]) => style.stroke !== "none" && style.strokeOpacity === "1")
    .map(([path, style]) => {
      const [a, b] = [luminance(numbers(style.stroke)), luminance(behind(path))];
      return [style.stroke, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    })"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        own = next(filter(None, map(shutil.which, NAMES)), None)
        try:
            started = driver.chromium.launch(executable_path=own)
        except sync_api.Error as error:
            pytest.skip(f"needs Chromium on the path or `playwright install chromium`: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def visit(browser, pages):
    """Opens a page; at the end nothing may have been asked of a network or said on the console."""
    opened = []

    def visit(name="plain", width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, heard = context.new_page(), []
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: heard.append(request.url))
        address = pages[name].as_uri()
        page.goto(address)
        opened.append((context, heard, address))
        return page

    yield visit
    for context, heard, address in opened:
        context.close()
        assert heard == [address]


def column(page, number):
    return page.eval_on_selector_all(
        "table.sortable tbody tr", f"rows => rows.map(row => row.cells[{number}].textContent)"
    )


def test_it_renders_and_says_the_verdict_first(visit):
    page = visit()
    headline = page.locator(".headline").bounding_box()
    assert page.locator(".headline").inner_text().startswith("The model answers like one that never saw")
    assert headline["y"] + headline["height"] < 450
    assert headline["y"] < page.locator("table").first.bounding_box()["y"]
    boxes = [picture.bounding_box() for picture in page.locator("main svg").all()]
    assert len(boxes) == 4
    assert all(box["width"] > 300 and box["height"] > 150 for box in boxes)


def test_a_click_and_a_key_sort_the_table(visit):
    page = visit()
    head = page.locator("table.sortable thead th").nth(2)
    assert head.inner_text().split() == ["Loss,", "after"]
    file_order = column(page, 0)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rising = [float(text) for text in column(page, 2)]
    assert rising == sorted(rising)
    assert column(page, 0) != file_order
    assert page.locator("#sorted").inner_text() == "Sorted by Loss, after, ascending."
    page.keyboard.press("Enter")  # the button that was clicked has the focus
    assert [float(text) for text in column(page, 2)] == rising[::-1]
    first = page.locator("table.sortable thead th").nth(0)
    first.locator("button").focus()
    page.keyboard.press("Space")
    assert column(page, 0) == file_order
    assert head.get_attribute("aria-sort") is None


def test_text_is_hidden_unless_it_was_told(visit):
    page = visit()
    assert SECRET not in page.content()
    assert page.locator("#answers").count() == 0
    told = visit("told")
    assert told.locator("#answers").count() == 1
    assert SECRET in told.locator("table.sortable").inner_text()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast_is_at_least_4_5_and_3_of_lines(visit, scheme):
    """WCAG 2, 1.4.3 and 1.4.11; of lines also on white paper when the screen is dark."""
    page = visit("told", scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == SCHEMES[scheme]
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 500
    assert [item for item in found if item[1] < 4.5] == []
    assert {opacity for *_, opacity in found} == {"1"}
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        lines = page.evaluate(CONTRASTS.replace("return found", f"return {STROKES}"))
        assert len(lines) > 3 * 8
        assert [item for item in lines if item[1] < 3] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_but_what_says_so(visit, width):
    page = visit("told", width=width)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # What does scroll can be reached with a keyboard, and has a name.
    wide = page.eval_on_selector_all(
        "body *",
        """all => all.filter(one => ["auto", "scroll"].includes(getComputedStyle(one).overflowX))
                      .map(one => [one.tabIndex, one.tagName, one.ariaLabel || one.getAttribute("aria-labelledby")])""",
    )
    assert wide
    assert all(index == 0 and (name or tag == "PRE") for index, tag, name in wide)


def test_every_picture_has_an_alternative_and_every_control_a_name(visit):
    page = visit("told")
    for svg in page.locator("svg, img").all():
        assert svg.get_attribute("role") == "img"
        assert len(svg.get_attribute("aria-label")) > 40
    names = page.eval_on_selector_all("a, button, summary", "all => all.map(one => one.textContent.trim())")
    assert len(names) > 15
    assert all(names)


def test_on_paper_everything_is_there_and_nothing_is_cut(visit):
    page = visit("told", width=A4)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == A4
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    last = page.locator("details").last
    assert last.get_attribute("open") is None
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('details:last-of-type'), '::details-content').contentVisibility"
        )
        == "visible"
    )
