"""`vitline bench data` at a small size: every contender that is installed does the same work."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from launch.bench import data_peers
from launch.bench.data import main, table
from launch.bench.data_sets import ImageSet, make_set
from launch.bench.data_whole import measure_memory, measure_writing

PHOTOS = Path(__file__).resolve().parents[3] / "data" / "photos"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return make_set("small", PHOTOS, tmp_path_factory.mktemp("sets"), 300)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ours", "kernel", "webdataset", "timm"])
def test_every_contender_gives_whole_batches_for_ever(
    small: ImageSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_peers, "SLICE", 2)
    batches = data_peers.contenders()[name](small)
    assert [next(batches) for _ in range(3)] == [256] * 3


def test_a_set_that_is_there_is_not_made_again(small: ImageSet) -> None:
    before = [Path(path).stat().st_mtime_ns for path in small.tars]
    again = make_set("small", PHOTOS, small.root.parent, 300)
    assert [Path(path).stat().st_mtime_ns for path in again.tars] == before
    labels = again.view().labels_of(np.arange(300))
    assert len(set(labels.tolist())) == 8


def test_memory_is_measured(small: ImageSet) -> None:
    memory = measure_memory(small, epochs=3)
    assert 0 < memory.settled < 10_000
    assert abs(memory.slope) < 100


@pytest.mark.slow
def test_writing_is_measured(tmp_path: Path) -> None:
    assert len(measure_writing(PHOTOS, tmp_path, 1, 20)) == 1
    assert not (tmp_path / "written").exists()


def test_ratios_are_taken_round_by_round(small: ImageSet) -> None:
    rows = table(small, {"ours": [1.0, 2.0, 4.0], "peer": [3.0, 2.0, 8.0]})
    assert [row["ours/it"] for row in rows] == ["1.00", "2.00"]


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_its_figures(
    small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.bench.data.contenders", lambda: {"ours": data_peers.ours})
    monkeypatch.setattr("launch.bench.data.SLICE", 1)
    for name in ("report_memory", "report_writing"):  # start processes
        monkeypatch.setattr(f"launch.bench.data.{name}", lambda *given: None)
    figures = tmp_path / "figures.csv"
    work = str(small.root.parent)
    main(["--photos", str(PHOTOS), "--sets", "small", "--rounds", "1", "--work", work, "--csv", str(figures)])
    [row] = csv.DictReader(figures.open())
    assert (row["set"], row["contender"], row["ours/it"]) == ("small", "ours", "1.00")
    assert "two threads" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--photos", str(tmp_path / "none")])
