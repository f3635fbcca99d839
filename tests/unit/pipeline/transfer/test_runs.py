"""Several runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.events import EventLog
from pipeline.transfer.runs import compare_runs, differing_settings, run_labels
from tests.helpers.synthetic_run import SyntheticRun, pretrained_wins, synthetic_config, write_synthetic_run


def better(dataset: str, start: str, seed: int) -> float:
    return pretrained_wins(dataset, start, seed) + 0.05


def write(root: Path, name: str, better_by: float = 0.0, **pretrain: object) -> SyntheticRun:
    plain = synthetic_config(root).model_dump(mode="json")
    plain["name"] = name
    plain["pretrain"] |= pretrain
    return write_synthetic_run(
        RunConfig.model_validate(plain), accuracy=lambda d, s, k: pretrained_wins(d, s, k) + better_by
    )


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    short = write(tmp_path, "short")
    long = write(tmp_path, "long", 0.05, duration="900 steps")
    return [short.run.path, long.run.path]


def test_the_first_run_is_the_baseline(two: list[Path]) -> None:
    result = compare_runs(two)
    assert (result.baseline, result.labels) == ("short", ("long", "short"))
    assert [(p.dataset, p.challenger, p.verdict) for p in result.pairs] == [
        ("count", "long", "better"),
        ("digits", "long", "better"),
    ]
    assert result.pairs[0].delta_pp == pytest.approx(5.0)


@pytest.mark.parametrize("by_path", [False, True])
def test_the_baseline_is_named_by_label_or_path(two: list[Path], by_path: bool) -> None:
    result = compare_runs(two, str(two[1]) if by_path else "long")
    assert {p.verdict for p in result.pairs} == {"worse"}
    with pytest.raises(UserError, match="one of the runs: short, long"):
        compare_runs(two, "other")


def test_other_starts_can_be_compared(two: list[Path]) -> None:
    assert compare_runs(two, start="scratch").pairs[0].delta_pp == pytest.approx(5.0)
    with pytest.raises(UserError, match="no finished evaluation of the start 'probe'"):
        compare_runs(two, start="probe")


def test_only_what_was_last_compared_counts(two: list[Path]) -> None:
    run = write(two[0].parent, "short", 0.02, duration="600 steps")
    assert run.run.path == two[0]
    # The jobs of the first settings are still there.
    assert len(list(run.run.jobs.iterdir())) > len(run.digests)
    assert compare_runs(two).pairs[0].delta_pp == pytest.approx(3.0)


def test_a_run_that_was_not_compared_yet_is_read_by_its_evaluations(two: list[Path]) -> None:
    (two[1] / "events.jsonl").unlink()
    assert len(compare_runs(two).pairs) == 2


def test_settings_that_differ(two: list[Path]) -> None:
    assert differing_settings(two) == [("pretrain.duration", ("300 steps", "900 steps"))]


def test_labels_tell_runs_of_one_name_apart(tmp_path: Path) -> None:
    assert run_labels([tmp_path / "a" / "demo", tmp_path / "b" / "demo"]) == ["a/demo", "b/demo"]
    with pytest.raises(UserError, match="named twice"):
        run_labels([tmp_path / "a", tmp_path / "x" / ".." / "a"])


def test_a_test_split_opened_too_often_is_told(two: list[Path]) -> None:
    log = EventLog(two[0] / "openings.jsonl")
    event = (two[0] / "openings.jsonl").read_text().splitlines()[0]
    log({"name": "again", "dataset": __import__("json").loads(event)["dataset"]})
    log.close()
    assert "short opened the test split of digits 5 times for 4 results" in compare_runs(two).warnings


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs(two: list[Path], count: int) -> None:
    with pytest.raises(UserError, match="two or more run directories"):
        compare_runs(two[:count])


def test_no_run_directory(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no readable config\.resolved\.yaml"):
        compare_runs([two[0], tmp_path])


def test_different_protocols_are_refused(two: list[Path], tmp_path: Path) -> None:
    plain = synthetic_config(tmp_path).model_dump(mode="json")
    plain["name"] = "other"
    plain["transfer"]["protocol"] |= {"name": "vtab", "duration": "50 steps"}
    other = write_synthetic_run(RunConfig.model_validate(plain))
    with pytest.raises(UserError, match="short quick, other vtab"):
        compare_runs([two[0], other.run.path])
    result = compare_runs([two[0], other.run.path], force=True)
    assert {p.verdict for p in result.pairs} == {"not comparable"}


def test_runs_without_a_shared_dataset(two: list[Path], tmp_path: Path) -> None:
    for path, dataset in zip(two, ("digits", "count"), strict=True):
        plain = synthetic_config(tmp_path).model_dump(mode="json")
        plain["name"] = path.name
        plain["transfer"]["datasets"] = [dataset]
        write_synthetic_run(RunConfig.model_validate(plain))
    with pytest.raises(UserError, match="no dataset was evaluated in all of short, long"):
        compare_runs(two)
