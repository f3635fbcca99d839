"""The report of a whole run: complete, self-contained, stable, and safe against names."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.events import EventLog
from pipeline.report.build import ReportPaths, build
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run

HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="alert(2)',
    "</text></svg><img src=x onerror=alert(3)>",
    "{{ 7 * 7 }}${oc.env:HOME}",
    "$\\frac{1}{2}$ & <b>",
    "--><!-- ]]>",
    'url(#x) id="y" #0072b2',
    "\u202ereversed\x00",
    "猫 🐈",
    "javascript:alert(4)",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    return write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def built(made: SyntheticRun) -> ReportPaths:
    return build_report(made)


def build_report(made: SyntheticRun) -> ReportPaths:
    return build(made.run, made.config.model_dump(mode="json"), made.digests)


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and ids, and checks that tags close in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_everything_is_written(built: ReportPaths) -> None:
    names = sorted(path.name for path in built.html.parent.iterdir())
    pictures = ["accuracy", "calibration", "compute", "confusion", "finetuning", "forest", "frontier"]
    pictures += ["pretraining", "timeline"]
    files = [*(f"{picture}.png" for picture in pictures), "report.html"]
    assert names == sorted([*files, "jobs.json", "results.csv", "results.json"])
    assert built.html.stat().st_size < 2_000_000
    for picture in built.pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(built.json.read_text())["pairs"][0]["verdict"] == "better"


def test_the_page_says_what_was_found(built: ReportPaths) -> None:
    text = " ".join("".join(Page(built.html.read_text()).text).split())
    for part in (
        "What did the pre-training of vit_ti16 on glyphs buy?",
        "pretrained is better than scratch on digits by 14.0 pp",
        "2 seeds in at least one cell",
        "How the learning rate was chosen",
        "What this does not show",
        "Unreadable images were left out when the data was prepared: count 1.",
        "Openings of the test splits so far: digits 4, count 4",
        "Tests: 2, two-sided at 5 %, adjusted by Holm",
        "vitline 0.1.0, commit c0ffee",
    ):
        assert part in text


def test_the_page_loads_nothing(built: ReportPaths) -> None:
    page = Page(built.html.read_text())
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "xlink:href", "src"):
            assert value.startswith(("#", "data:image/png;", "data:image/jpeg;")), (tag, value[:80])
        if name == "style":
            assert not re.search(r"url\((?!#)", value)
    policy = dict((name, value) for tag, name, value in page.attributes if "none" in value and tag == "meta")
    assert policy["content"].startswith("default-src 'none'")


def test_every_reference_in_the_page_has_one_target(built: ReportPaths) -> None:
    page = Page(built.html.read_text())
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    hrefs = [value for _, name, value in page.attributes if name.endswith("href")]
    targets = {value.removeprefix("#") for value in hrefs if not value.startswith("data:image/")}
    targets |= {found for _, _, value in page.attributes for found in re.findall(r"url\(#([^)]*)\)", value)}
    assert targets <= set(ids)


def test_colours_follow_the_reader(built: ReportPaths) -> None:
    text = built.html.read_text()
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawings)) == set()
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_plots_have_text_and_a_table(built: ReportPaths) -> None:
    text = built.html.read_text()
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 9
    for figure in figures:
        assert "<text" in figure
        assert "<details><summary>Numbers behind this plot</summary>" in figure
        assert 'role="img" aria-label="' in figure


def test_the_same_results_give_the_same_bytes(made: SyntheticRun, built: ReportPaths) -> None:
    first = {path.name: path.read_bytes() for path in built.html.parent.iterdir()}
    # Another command that finds everything done adds events and no result.
    log = EventLog(made.run.events)
    log({"event": "run", "state": "started", "name": "synthetic", "version": "0.1.0", "commit": "c0ffee"})
    log({"event": "run", "state": "finished"})
    log.close()
    again = build_report(made)
    assert {path.name: path.read_bytes() for path in again.html.parent.iterdir()} == first


def test_hostile_names_are_text(tmp_path: Path) -> None:
    plain = synthetic_config(tmp_path).model_dump(mode="json")
    name = '$\\frac$<img src=x onerror=alert("d")>'
    plain["datasets"][name] = plain["datasets"].pop("count")
    plain["transfer"]["datasets"] = ["digits", name]
    plain["transfer"]["protocol"]["name"] = "</style><script>alert(5)</script>"
    made = write_synthetic_run(RunConfig.model_validate(plain), classes={"digits": HOSTILE, name: HOSTILE})
    built = build_report(made)
    text = built.html.read_text()
    page = Page(text)
    test_the_page_loads_nothing(built)
    test_every_reference_in_the_page_has_one_target(built)
    assert page.tags.count("style") == 1
    shown = "".join(page.text)
    for hostile in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4], HOSTILE[5], HOSTILE[8], name[:20]):
        assert hostile in shown or hostile[:21] in shown, hostile
    assert "\u202e" not in text
    assert "\x00" not in text


def test_one_start_gives_a_report_without_a_verdict(tmp_path: Path) -> None:
    plain = synthetic_config(tmp_path).model_dump(mode="json")
    plain["transfer"] |= {"starts": ["scratch"], "seeds": [3]}
    made = write_synthetic_run(RunConfig.model_validate(plain))
    built = build_report(made)
    assert "Nothing was compared." in built.html.read_text()
    assert not (built.html.parent / "forest.png").exists()


def test_jobs_that_are_not_done_are_left_out(tmp_path: Path) -> None:
    made = write_synthetic_run(synthetic_config(tmp_path))
    for name in ("evaluate/count/scratch/seed0", "evaluate/count/scratch/seed1", "pretrain"):
        made.run.job(made.digests[name]).result.unlink()
    built = build_report(made)
    assert "no result for scratch on count" in built.html.read_text()
    assert [pair.dataset for pair in built.comparison.pairs] == ["digits"]


def test_nothing_evaluated_yet(tmp_path: Path) -> None:
    made = write_synthetic_run(synthetic_config(tmp_path), stages=("prepare", "pretrain"))
    with pytest.raises(UserError, match="no finished evaluation"):
        build_report(made)


def test_many_datasets_begin_with_a_tally(tmp_path: Path) -> None:
    plain = synthetic_config(tmp_path).model_dump(mode="json")
    names = [f"set{k}" for k in range(7)]
    plain["datasets"] |= {name: {"source": "digits", "seed": k} for k, name in enumerate(names)}
    plain["transfer"] |= {"datasets": names, "seeds": [0]}
    built = build_report(write_synthetic_run(RunConfig.model_validate(plain), images=100))
    text = built.html.read_text()
    assert "pretrained against scratch on 7 datasets: better on 7." in text
    assert "<summary>2 more</summary>" in text
    test_every_reference_in_the_page_has_one_target(built)
