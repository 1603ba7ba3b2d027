"""A report as a page: everything is escaped, and it fits every screen in a real browser."""

from __future__ import annotations

from pathlib import Path

from pivotune.evaluation.compare import compare
from tests.evaluation.compare.browser import CONTRAST, Tables, chromium
from tests.evaluation.compare.made_up import gain, write_log, write_run


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script><img>|`a`"
    base, run = write_run(tmp_path / "base", {}), write_run(tmp_path / "x", {}, config={"style": "<b>bold</b>"})
    compare([str(base), f"{nasty}={run}"], output=str(tmp_path / "out"), title="</title><script>alert(1)</script>")
    page = (tmp_path / "out" / "compare.html").read_text()
    found = Tables(page)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "b"}
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in found.tags if tag == "img")
    assert any(nasty in text for text in found.texts)
    written = (tmp_path / "out" / "compare.md").read_text()
    assert "<img" not in written and "<script" not in written and r"\|\`a\`" in written


def test_the_page_fits_every_screen_and_asks_for_nothing(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "base", {}, draw=1))]
    runs += [
        f"a-long-name-of-a-run-without-any-place-to-break-{k}={write_run(tmp_path / str(k), gain, draw=k)}"
        for k in (2, 3, 4, 5)
    ]
    write_log(tmp_path / "base", {"lm": 1.0})
    output = tmp_path / "out"
    compare(runs, output=str(output))
    page = output / "compare.html"
    with chromium() as browser:
        for width, height in ((390, 844), (1280, 900)):
            for scheme in ("light", "dark"):
                browser.open(page, width, height, scheme)
                assert browser.ask("document.documentElement.scrollWidth") <= width
                assert browser.ask("document.body.scrollWidth") <= width
                tables = "[...document.querySelectorAll('.scroll')]"
                wide = browser.ask(f"{tables}.some(one => one.scrollWidth > one.clientWidth)")
                assert wide or width > 600  # a wide table scrolls inside itself
                # The first column stays in place.
                place = "getBoundingClientRect().x"
                browser.ask(f"{tables}[0].scrollLeft = 200")
                moved = browser.ask(f"{tables}[0].querySelector('tbody th').{place} - {tables}[0].{place}")
                assert abs(moved) <= 1
                assert browser.ask("document.images.length") > 0
                browser.ask("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
                asked = [url for url in browser.requests if not url.startswith("data:")]
                assert asked == [page.resolve().as_uri()]
                paper = browser.ask("getComputedStyle(document.body).backgroundColor")
                assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
                assert browser.ask(CONTRAST) >= 4.5
