"""The report in a real Chromium: opened from a file with no network, on a desk, on a phone, in print, in the dark.

Skipped where no Chromium is installed. The browser lives as long as this module: Playwright's synchronous interface
keeps an event loop running, which tests of other modules could not bear beside their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browsers import CHROMIUM, needs_chromium

if TYPE_CHECKING:
    from tests.conftest import Tree

pytestmark = needs_chromium

HOSTILE = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">"\'><svg onload="window.hacked=1">'
    "</td></table></style></title>{{ 7 * 7 }}{% raw %}&amp;\u202eabc\u202c $x^2$ https://example.org/a.png"
)
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                           return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = colour => { const part = rgba(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2]; };
  const ground = element => { for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor; if (rgba(colour)[3] > 0) return colour; } return "white"; };
  const found = [];
  for (const element of document.querySelectorAll("h1,h2,h3,h4,p,li,th,td,dt,dd,figcaption,summary,a,svg text,span")) {
    if (!element.textContent.trim() || element.closest(".skip")) continue;
    const inside = element.closest("svg");
    const colour = inside ? getComputedStyle(element).fill : getComputedStyle(element).color;
    if (inside && /^rgb\\((0, 0, 0|255, 255, 255)\\)$/.test(colour)) continue;  // on a cell of the heat map
    const [one, other] = [light(colour), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found.push([element.tagName, element.textContent.trim().slice(0, 40), colour, ratio]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., tuple[Page, list[str]]]]:
    """Open a tree's report with the network off; gives the page, and what it complained of or asked for."""
    contexts = []

    def open_report(tree: Tree, *, width: int = 1280, **options: Any) -> tuple[Page, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        page, noise = context.new_page(), []
        address = (tree.folder / "report/report.html").as_uri()
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("request", lambda request: request.url in (address,) or noise.append(f"request: {request.url[:80]}"))
        page.goto(address)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        page.wait_for_function("[...document.images].every(picture => picture.complete)")
        return page, [line for line in noise if not line.startswith("request: data:")]

    yield open_report
    for context in contexts:
        context.close()


Opened = Callable[..., tuple[Page, list[str]]]


def sideways(page: Page) -> int:
    """By how many px the page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_page_opens_from_a_file_silently_and_fits_its_window(opened: Opened, finished_tree: Tree, width: int) -> None:
    page, noise = opened(finished_tree, width=width)
    assert noise == []
    assert page.title() == "ARMS in the sandbox"
    assert page.locator("html").get_attribute("lang") == "en"
    assert sideways(page) == 0


def test_every_figure_is_seen_and_has_words(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree, width=390)
    plots = page.locator("figure svg")
    files = list((finished_tree.folder / "report/figures").glob("*.svg"))
    assert plots.count() == len(files) > 8
    for number in range(plots.count()):
        box = plots.nth(number).bounding_box()
        assert box is not None
        assert box["width"] > 250
        assert box["height"] > 200
        assert plots.nth(number).get_attribute("role") == "img"
        assert len(plots.nth(number).get_attribute("aria-label") or "") > 60
    for number in range(page.locator("figure").count()):
        assert page.locator("figure").nth(number).locator("figcaption").inner_text()


def test_words_of_the_figures_are_large_enough_to_read_on_a_phone(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree, width=390)
    heights = page.evaluate(
        "[...document.querySelectorAll('figure svg text')].map(text => [text.getScreenCTM(), text]).map("
        "([on, text]) => Math.hypot(on.a, on.b) * parseFloat(getComputedStyle(text).fontSize))"  # turned or not
    )
    assert min(heights) >= 7


def test_pictures_are_there_with_words(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree)
    pictures = page.evaluate("[...document.images].map(one => [one.naturalWidth, one.naturalHeight, one.alt])")
    assert len(pictures) >= 6
    assert all(0 < width <= 320 and 0 < height <= 320 and words for width, height, words in pictures)


def test_headings_go_down_one_level_at_a_time_and_tables_have_headers(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    without = page.evaluate(
        "[...document.querySelectorAll('table')].filter(one => !one.querySelector('thead th')).length"
    )
    assert without == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_on_their_ground(opened: Opened, finished_tree: Tree, scheme: str) -> None:
    page, _ = opened(finished_tree, color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


def test_page_prints_on_a4_in_light_colours(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree, width=695, color_scheme="dark")  # A4 without its margins
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert sideways(page) == 0
    wider = page.evaluate(
        "[...document.querySelectorAll('figure svg, table, .card')].filter(one => one.getBoundingClientRect().right > "
        "document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    )
    assert wider == []


def test_hostile_text_is_shown_as_text_and_does_nothing(opened: Opened, copied_tree: Tree) -> None:
    folder = copied_tree.folder
    texts = [pl.lit(HOSTILE).alias(name) for name in ("question", "answer", "task", "licence", "language")]
    queries = pl.read_parquet(folder / "queries/queries.parquet")
    queries.with_columns(*texts, pl.lit([HOSTILE, "b"]).alias("choices")).write_parquet(
        folder / "queries/queries.parquet"
    )
    for table, column in (("collect", "output"), ("label", "predicted")):
        for pool in ("base", "new"):
            path = folder / f"{table}/{pool}.parquet"
            pl.read_parquet(path).with_columns(pl.lit(HOSTILE + "\x00\x1b").alias(column)).write_parquet(path)
    params = copied_tree.params()
    for vlm in params["vlms"]:
        vlm["display_name"] = vlm["provider"] = HOSTILE
    params["report"] |= {"title": HOSTILE, "note": HOSTILE}
    copied_tree.write_params(params)
    result = copied_tree.stage("report")
    assert result.returncode == 0, result.stderr
    page, noise = opened(copied_tree, width=390)
    assert noise == []
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length + document.querySelectorAll('[onload], [onerror]').length") == 0
    assert page.evaluate("[...document.images].every(one => one.src.startsWith('data:image/webp'))")
    assert sideways(page) == 0
    for place in ("h1", ".note", ".card .question", ".card td.answer", ".card h4"):
        assert HOSTILE in (page.locator(place).first.text_content() or ""), place
    figure = (folder / "report/figures/complementarity.svg").read_text()
    assert "<script" not in figure
    assert "&lt;script&gt;" in figure  # a VLM's name is text in a figure, too


def test_page_says_where_it_is_a_demonstration(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree)
    assert "A demonstration" in page.locator(".note").first.inner_text()


def test_contents_lead_to_every_section(opened: Opened, finished_tree: Tree) -> None:
    page, _ = opened(finished_tree)
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(one => one.getAttribute('href').slice(1))")
    headings = page.evaluate("[...document.querySelectorAll('h2')].map(one => one.id)")
    assert links == headings
    assert len(headings) == 11
