"""report.html in a headless Chromium: on a desk, on a phone, on paper.

apt-get install chromium      (Debian)
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import EventLog
from pipeline.report.build import build
from tests.helpers.synthetic_run import START, synthetic_config, write_synthetic_run, write_training

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What the browser made of the page, told to the frame around it. Its copy has no policy.
MEASURE = """
<script>
const root = document.documentElement, all = (what) => [...document.querySelectorAll(what)];
const scrolls = (element) => element.closest('.scroll, figure, details') !== null;
const wide = (element) => element.getBoundingClientRect().right > root.clientWidth + 1;
parent.postMessage(JSON.stringify({
  window: root.clientWidth,
  page: root.scrollWidth,
  cut: all('h1, h2, p, li, dd, table, figcaption').filter((e) => wide(e) && !scrolls(e))
    .map((e) => e.outerHTML),
  plots: all('figure svg').map((e) => e.getBoundingClientRect()).map((box) => [box.width, box.height]),
  images: all('img').map((e) => e.naturalWidth),
  targets: all('nav a').map((e) => document.querySelector(e.getAttribute('href'))?.offsetHeight ?? 0),
}), '*');
</script>
"""
# A frame is as narrow as it is told; a window is not.
FRAME = """<!doctype html><html><body>
<script>onmessage = (event) => { document.body.dataset.measured = event.data; };</script>
<iframe src="report.html" style="border: 0; width: WIDTHpx; height: 2000px"></iframe></body></html>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose pre-training lost a rank."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    made = write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("runs")))
    digest = made.digests["pretrain"]
    events = made.run.job(digest).events
    events.unlink()
    write_training(made.run, digest, steps=300, time=START + 100, seconds=90.0, last=100, done=False)
    log = EventLog(events)
    log({"event": "failed", "time": START + 132, "rank": 1, "error": "out of memory"})
    log.close()
    write_training(made.run, digest, steps=300, time=START + 160, seconds=90.0, first=90, attempt=2)
    return build(made.run, made.config.model_dump(mode="json"), made.digests).html


def chromium(directory: Path, *options: str) -> str:
    done = subprocess.run(
        [
            *(
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ),
            *(f"--user-data-dir={directory / 'profile'}", *options),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout


def measured(text: str, width: int, directory: Path) -> str:
    """The document around a page that is `width` wide; what the page said is in it."""
    (directory / "report.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    (directory / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    frame = (directory / "frame.html").as_uri()
    return chromium(directory, "--window-size=1400,2200", "--virtual-time-budget=10000", "--dump-dom", frame)


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_cut_and_everything_is_drawn(page: Path, width: int, tmp_path: Path) -> None:
    text = page.read_text()
    open_page, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    dom = measured(open_page, width, tmp_path)
    match = re.search(r'data-measured="([^"]*)"', dom)
    assert match, dom[:2000]
    found: dict[str, Any] = json.loads(html.unescape(match.group(1)))
    assert found["window"] == width
    # Wide things are pushed sideways in their own box, never the page.
    assert found["page"] <= found["window"]
    assert found["cut"] == []
    assert len(found["plots"]) >= 5
    assert all(box_width > 200 and height > 50 for box_width, height in found["plots"])
    assert all(found["images"])
    assert len(found["targets"]) >= 6
    assert all(found["targets"])


def test_the_policy_of_the_page_lets_no_script_run(page: Path, tmp_path: Path) -> None:
    assert "data-measured" not in measured(page.read_text(), 1200, tmp_path)


def test_it_prints(page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    chromium(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF-")
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("printed; what is on it was not read: apt-get install poppler-utils")
    text = subprocess.run([reader, "-layout", str(paper), "-"], capture_output=True, text=True).stdout
    # The last column of the widest table is on paper too.
    for words in ("Results", "verdict", "Accuracy against compute", "What happened when", "Faults: 1."):
        assert words in text, words
