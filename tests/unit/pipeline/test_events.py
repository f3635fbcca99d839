"""Event logs: whole lines, followed from an offset, and safe against a writer that was killed."""

from __future__ import annotations

from pathlib import Path

from pipeline.events import EventLog, read_events


def test_events_are_followed_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=2)
    log({"event": "start"})
    first, offset = read_events(path)
    log({"event": "done", "step": 5})
    second, end = read_events(path, offset)
    assert [event["event"] for event in first] == ["start"]
    assert (second[0]["event"], second[0]["step"], second[0]["attempt"]) == ("done", 5, 2)
    assert read_events(path, end) == ([], end)


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "b"')
    events, offset = read_events(path)
    assert [event["event"] for event in events] == ["a"]
    with path.open("ab") as file:
        file.write(b"}\n")
    assert [event["event"] for event in read_events(path, offset)[0]] == ["b"]


def test_a_torn_line_of_a_killed_writer_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "to')
    EventLog(path)({"event": "b"})
    assert [event["event"] for event in read_events(path)[0]] == ["a", "b"]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl") == ([], 0)
