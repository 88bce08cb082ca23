"""The page as somebody uses it: clicked through in a browser, which must have nothing to complain
about. Skipped where there is no Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.compiler.api.executable import Executable
from tilewright.compiler.codegen.cpu.assemble import assembly
from tilewright.compiler.codegen.cpu.lower import module_text
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.compiler.text import printable

from .browser import Browser, installed
from .pages import EVIL, deep, profiled, small

pytestmark = pytest.mark.skipif(installed() is None, reason="there is no Chromium")

SCREENS = ((1366, 768, False), (390, 844, True))
"""Of a laptop and a phone."""

# The least contrast of all words on the screen with what is behind them, and whose it is.
CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const box = e.getBoundingClientRect();
    if (!words || box.width < 2 || e.closest("svg, .unseen, noscript, script")) continue;
    let behind = e;
    const back = (of) => parse(getComputedStyle(of).backgroundColor);
    while (behind && back(behind)[3] === 0) behind = behind.parentElement;
    const a = light(parse(getComputedStyle(e).color)), b = light(back(behind ?? document.body));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${e.className}: ${e.textContent.slice(0, 40)}`];
  }
  return worst;
})()"""
PICTURE = "document.getElementById('drawing').toDataURL()"
HEADING = "document.querySelector('#details:not([hidden]) h2')?.textContent ?? ''"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = installed()
    assert path is not None
    with Browser(path) as found:
        yield found


@pytest.fixture(scope="module")
def exe() -> Executable:
    return small()


@pytest.fixture(scope="module")
def evil(exe: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a model whose names try to be more than names."""
    path = tmp_path_factory.mktemp("page") / "evil page.html"
    exe.report(path, name=EVIL, profile=profiled(exe))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 2,001 nodes."""
    path = tmp_path_factory.mktemp("page") / "large.html"
    program = deep(500)
    program.report(path, profile=profiled(program))
    return path


@pytest.fixture(autouse=True)
def nothing_to_complain_about(browser: Browser) -> Iterator[None]:
    browser.complaints.clear()
    browser.requests.clear()
    yield
    assert browser.complaints == []
    assert all(url.startswith("file:") or url == "data:," for url in browser.requests)


def fits(browser: Browser, width: int) -> None:
    """Nothing makes the page as a whole wider than the screen."""
    wide = "[document.documentElement, document.body].map((e) => e.scrollWidth)"
    assert max(browser.look(wide)) <= width
    edge = "Math.max(...[...document.querySelectorAll('header *, #tabs, main > *, .bar *')]" \
           ".filter((e) => e.checkVisibility() && !e.closest('.unseen'))" \
           ".map((e) => e.getBoundingClientRect().right))"  # fmt: skip
    assert browser.look(edge) <= width


def search(browser: Browser, words: str) -> None:
    browser.look("document.getElementById('search').value = ''")
    browser.focus("#search")
    browser.type(words)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height", "phone"), SCREENS)
def test_every_view_opens_fits_and_can_be_read(
    browser: Browser, evil: Path, width: int, height: int, phone: bool, dark: bool
) -> None:  # fmt: skip
    browser.size(width, height, phone=phone, dark=dark)
    browser.open(evil)
    shown = browser.look("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, shown[4:-1].split(","))) < 300) is dark
    for tab in ("kernels", "graph", "memory", "stages"):
        browser.click(f"#tab-{tab}")
        seen = "[...document.querySelectorAll('section:not([hidden])')].map((s) => s.id)"
        assert browser.look(seen) == [tab]
        fits(browser, width)
        ratio, whose = browser.look(CONTRAST)
        assert ratio >= 4.5, f"{tab}: {whose}"
    browser.click("#tab-kernels")
    browser.click(".kernels tbody tr td.nodes")
    for level in ("overview", "ir", "llvm", "asm"):
        browser.click(f"#details [data-level={level}]")
        if level != "overview":
            browser.until("document.querySelector('.code span[class]')")
        fits(browser, width)
        ratio, whose = browser.look(CONTRAST)
        assert ratio >= 4.5, f"{level}: {whose}"


def test_names_are_words_and_nothing_else(browser: Browser, evil: Path) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    assert browser.text("#name") == printable(EVIL)
    browser.click("#tab-graph")
    search(browser, "onerror")
    browser.click("#found button")
    assert printable(EVIL) in browser.look(HEADING)
    for tab in ("memory", "stages"):
        browser.click(f"#tab-{tab}")
    browser.click(".stages button")
    browser.until("document.querySelector('#stage .code')?.textContent.includes('onerror')")
    assert browser.look("document.images.length") == 0
    assert browser.look("window.broken === undefined")


def test_a_script_that_came_in_would_not_run(browser: Browser, evil: Path) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    markup = '<img src=x onerror="broken=1">'
    browser.look(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(markup)})")
    browser.until("document.images[0].complete")
    assert browser.look("window.broken === undefined")
    browser.complaints.clear()  # the browser says that it refused it


def test_the_table_sorts_and_filters(browser: Browser, evil: Path, exe: Executable) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    first = "[...document.querySelectorAll('.kernels tbody th')].map((e) => e.textContent)"
    names = [f"k{k}" for k in range(len(exe.kernels))]
    assert browser.look(first) == names[::-1]  # the slowest one first
    assert browser.look("document.querySelector('th.seconds').ariaSort") == "descending"
    browser.click("th.number button")
    assert browser.look(first) == names
    browser.focus("#filter")
    browser.type("conv")
    convs = [f"k{k}" for k, kernel in enumerate(exe.kernels) if "conv" in kernel.template]
    assert browser.look(first) == convs and convs != names
    assert f"{len(convs)} of {len(names)}" in browser.text("#count")


def test_code_is_that_of_the_kernel_and_has_colours(
    browser: Browser, evil: Path, exe: Executable
) -> None:  # fmt: skip
    browser.size(1366, 768)
    browser.open(evil)
    c = exe._compilation
    kernel = c.launches[0].kernel
    llvm = module_text(kernel, c.target.arithmetic)
    browser.click("[data-kernel='0']")
    wanted = {"ir": kernel_text(kernel), "llvm": llvm, "asm": assembly(llvm, c.target)}
    for level, text in wanted.items():
        browser.click(f"#details [data-level={level}]")
        browser.until(f"document.querySelector('.code code')?.dataset.level === '{level}'")
        assert browser.text(".code") == text
        browser.until("document.querySelector('.code span')")
        assert len(browser.look("[...new Set([...document.querySelectorAll('.code span')]"
                                ".map((e) => getComputedStyle(e).color))]")) >= 3  # fmt: skip


def test_the_graph_zooms_pans_opens_and_selects(browser: Browser, large: Path) -> None:
    browser.size(1366, 768)
    browser.open(large)
    browser.click("#tab-graph")
    pictures = [browser.look(PICTURE)]

    def changed() -> bool:
        pictures.append(browser.look(PICTURE))
        return pictures[-1] != pictures[-2]

    browser.drag(400, 500, 300, 400)
    assert changed()
    browser.wheel(400, 400, 300)
    assert changed()
    browser.click("[aria-label='Show all of the graph']")
    assert changed()
    search(browser, "tanh_7")
    assert "found" in browser.text("#graph .bar")
    browser.press("Enter")
    chosen = browser.look(HEADING)
    assert chosen.startswith("k")
    assert "tanh_7" in browser.text("#details")
    browser.press("Escape")
    assert browser.look(HEADING) == ""
    # the block that was found is in the middle
    browser.click_at(*browser.middle("#drawing"))
    assert browser.look(HEADING) == chosen
    assert changed()
    browser.click("[aria-label^='Open all']")
    assert changed()
    browser.click("[aria-label^='Close all']")
    assert changed()
    browser.focus("#drawing")
    browser.press("ArrowDown")
    below = browser.look(HEADING)
    assert below.startswith("k") and below != chosen
    browser.press("ArrowUp")
    assert browser.look(HEADING) == chosen
    browser.press("Enter")  # opens the block
    assert changed()


def test_what_has_no_kernel_has_details_as_well(browser: Browser, evil: Path) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    browser.click("#tab-graph")
    search(browser, "reshape")
    browser.press("Enter")
    assert "no kernel: a view" in browser.text("#details") and "f32[4,64]" in browser.text(
        "#details"
    )
    for kind, name in (("input", "x"), ("output", "y")):
        search(browser, f"\\u2028{name}")
        found = browser.look(
            "[...document.querySelectorAll('#found button')].findIndex("
            f"(b) => b.textContent.startsWith('{kind} '))"
        )
        browser.click(f"#found li:nth-child({found + 1}) button")
        assert browser.look(HEADING) == printable(EVIL + name)
        assert f"{kind} of the program" in browser.text("#details")


def test_pinching_zooms(browser: Browser, evil: Path) -> None:
    browser.size(390, 844, phone=True)
    browser.open(evil)
    browser.click("#tab-graph")
    before = browser.look(PICTURE)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60)):
        points = [{"x": 195 + side * apart, "y": 600, "id": side + 1} for side in (-1, 1)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.frame()
    assert browser.look(PICTURE) != before
    assert browser.look("visualViewport.scale") == 1  # the drawing, not the page


def test_kernels_graph_and_memory_lead_to_each_other(
    browser: Browser, evil: Path, exe: Executable
) -> None:  # fmt: skip
    browser.size(390, 844, phone=True)
    browser.open(evil)
    browser.click("[data-kernel='0']")
    assert browser.look("document.activeElement.tagName") == "H2"  # the panel covers a phone
    browser.click("#level .bar button:first-child")
    assert browser.look("document.getElementById('graph').hidden") is False
    assert browser.look("document.getElementById('details').hidden") is True
    browser.click("#tab-memory")
    block = exe.plan.ranges[0]
    browser.click("#chart .box")
    words = browser.text("#block")
    assert printable(block.name) in words and "step" in words
    browser.focus("#chart")
    browser.press("ArrowRight")
    assert browser.text("#block") != words
    browser.click("#block button")
    assert browser.look(HEADING).startswith("k")
    browser.press("Escape")
    browser.click("#widen")
    assert browser.look("(() => { const c = document.querySelector('.chart'); "
                        "return c.scrollWidth > c.clientWidth; })()")  # fmt: skip
    fits(browser, 390)


def test_the_keyboard_reaches_everything(browser: Browser, evil: Path) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    reached = set()
    for _ in range(14):
        browser.press("Tab")
        reached.add(browser.look("document.activeElement.id || document.activeElement.ariaLabel"
                                 " || document.activeElement.textContent"))  # fmt: skip
    assert {"theme", "tab-kernels", "filter"} <= reached
    browser.focus("#tab-kernels")
    browser.press("ArrowRight")
    assert browser.look("document.activeElement.id") == "tab-graph"
    assert browser.look("document.getElementById('graph').hidden") is False
    nameless = browser.look(
        "[...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')]"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
    )
    assert nameless == 0


def test_the_button_changes_the_theme(browser: Browser, evil: Path) -> None:
    browser.size(1366, 768)
    browser.open(evil)
    browser.click("#tab-graph")
    colour, picture = browser.look("getComputedStyle(document.body).color"), browser.look(PICTURE)
    browser.click("#theme")
    assert browser.look("getComputedStyle(document.body).color") != colour
    assert browser.look(PICTURE) != picture  # the drawing follows
    browser.click("#theme")
    assert browser.look("getComputedStyle(document.body).color") == colour


def test_what_was_measured_is_listed(
    browser: Browser, exe: Executable, tmp_path: Path
) -> None:  # fmt: skip
    path = tmp_path / "page.html"
    exe.report(path, profile=profiled(exe))
    text = path.read_text()
    start = text.index('"measured":')
    made = {"problems": [{"rows": [["t", "a=1", 2e-6, 1.9e-6, 2.1e-6, 0, True, []],
                                   ["t", "a=2", 3e-6, 2.9e-6, 3.1e-6, 0.5, False, ["runs"]]],
                          "failed": 2, "margin": 0.02}],
            "launches": [0] + [-1] * (len(exe.kernels) - 1)}  # fmt: skip
    end = text.index(',"memory":')
    path.write_text(text[:start] + '"measured":' + json.dumps(made) + text[end:])
    browser.size(1366, 768)
    browser.open(path)
    assert "2, runs +50 %" in browser.text('[data-kernel="0"]')
    browser.click("[data-kernel='0']")
    browser.click("#details [data-level=overview]")
    words = browser.text("#details")
    assert "2 candidates measured, 2 more failed" in words and "+50 %" in words
    browser.click("[data-kernel='1']")
    assert "Nothing is on record" in browser.text("#details")
