"""The run over time: spans, what went wrong, gaps that are cut, and how it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.events import EventLog
from pipeline.report.build import build
from pipeline.report.timeline import Span, Timeline, read_timeline
from pipeline.report.timeline_plot import cut_gaps, goodput_sheet, incident_sheet, timeline_plot
from tests.helpers.synthetic_run import (
    START,
    SyntheticRun,
    synthetic_config,
    write_synthetic_run,
    write_training,
)


@pytest.fixture
def made(tmp_path: Path) -> SyntheticRun:
    """A run whose pre-training lost a rank at step 100 and went on 60 s later."""
    made = write_synthetic_run(synthetic_config(tmp_path))
    digest = made.digests["pretrain"]
    made.run.job(digest).events.unlink()
    begin = START + 100
    write_training(made.run, digest, steps=300, time=begin, seconds=90.0, last=100, done=False)
    log = EventLog(made.run.job(digest).events)
    log({"event": "gang", "time": begin + 31, "phase": "lost", "ranks": [1]})
    log({"event": "failed", "time": begin + 32, "rank": 1, "error": "</td><b>out of memory"})
    log.close()
    write_training(made.run, digest, steps=300, time=begin + 60, seconds=90.0, first=90, attempt=2)
    log = EventLog(made.run.job(digest).events)
    log({"event": "quarantine", "time": begin + 100, "step": 120, "samples": [{"id": 1}, {"id": 2}]})
    log({"event": "rewind", "time": begin + 110, "step": 90})
    log({"event": "warning", "time": begin + 110, "message": "loss not finite: back to step 90"})
    log({"event": "warning", "time": begin + 120, "message": "disk is filling"})
    log.close()
    return made


def timeline_of(made: SyntheticRun) -> Timeline:
    return read_timeline(made.run, list(made.digests.values()))


def test_what_went_wrong_is_told_in_order(made: SyntheticRun) -> None:
    found = timeline_of(made)
    assert [(incident.what, incident.is_fault) for incident in found.incidents] == [
        ("a rank was lost", True),
        ("rank 1 failed: </td><b>out of memory", True),
        ("went on from step 90 with 1 ranks", False),
        ("2 samples could not be decoded, at step 120", True),
        ("loss not finite: back to step 90", True),
        ("disk is filling", False),
    ]
    assert found.goodput is not None
    assert found.goodput.lost_s["down"] == pytest.approx(60 - 32)
    lines = {line.cells[0]: line.cells[1] for line in goodput_sheet(found.goodput).rows}
    assert lines["between attempts"] == "28.0 s"


def test_attempts_are_spans_of_their_own(made: SyntheticRun) -> None:
    spans = [span for span in timeline_of(made).spans if span.stage == "pretrain"]
    assert [span.begin - START for span in spans] == [100, 160]
    assert spans[0].end - START == 132
    assert not any(span.stage == "compare" for span in timeline_of(made).spans)


def test_jobs_that_are_not_done_have_no_time(made: SyntheticRun) -> None:
    made.run.job(made.digests["pretrain"]).result.unlink()
    found = timeline_of(made)
    assert (found.incidents, found.goodput) == ((), None)
    assert "<svg" in timeline_plot(found).svg


def test_long_gaps_are_cut_and_short_ones_kept() -> None:
    spans = [Span("a", 0, 100), Span("b", 50, 120), Span("b", 123, 150), Span("c", 10_000, 10_050)]
    axis = cut_gaps(spans)
    limit = 0.08 * (120 + 27 + 50)
    assert [missing for _, missing in axis.cuts] == [9850]
    assert axis.place(140) == 140
    assert axis.place(10_000) == pytest.approx(150 + limit)
    assert axis.place(121) == 123, "what lies in a gap is drawn at its end"
    assert axis.length == pytest.approx(150 + limit + 50)


def test_many_incidents_are_cut_with_their_number(made: SyntheticRun) -> None:
    log = EventLog(made.run.job(made.digests["pretrain"]).events)
    for k in range(50):
        log({"event": "warning", "time": START + 200 + k, "message": f"w{k}"})
    log.close()
    sheet = incident_sheet(timeline_of(made))
    assert len(sheet.rows) == 41
    assert sheet.rows[-1].cells[-1] == "and 16 more: see events.jsonl of the jobs"


def test_the_page_tells_it(made: SyntheticRun) -> None:
    page = build(made.run, made.config.model_dump(mode="json"), made.digests).html.read_text()
    assert "Faults: 4. Restarts: 1." in page
    assert "&lt;/td&gt;&lt;b&gt;out of memory" in page
    assert "Faults, restarts and warnings: 6" in page
