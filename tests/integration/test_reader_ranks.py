"""The same batches on any number of ranks and threads, and after any resume, with each rank a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataView, FolderSource, WriteSettings
from pipeline.data import assemble
from pipeline.data.view import open_view
from pipeline.data.write import prepare

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
STEPS = 8  # batches of 48 from 160 photos: two epochs and a bit; both end inside a batch
Step = tuple[list[int], list[str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uneven shards (the last has 10 samples), in chunks of about 5 photos."""
    root = tmp_path_factory.mktemp("reader")
    write = WriteSettings(shard_samples=25, shorter_side=96, chunk_bytes=40_000)
    prepare(FolderSource(source="folder", path=str(PHOTOS), write=write), root / "photos")
    size = open_view(DataView(path="photos", split="train"), root).bytes_per_sample
    assert size > assemble._SMALL_BYTES, "one thread would read them"
    return root / "photos"


def _logs(dataset: Path, out: Path, plan: list[list[list[int]]]) -> list[list[Step]]:
    """For each run its steps: ids and hashes of all ranks, one after the other."""
    out.mkdir()
    (out / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(Path(__file__).with_name("reader_ranks.py"))]
    subprocess.run([*command, str(dataset), str(out / "plan.json"), str(out)], check=True, timeout=300)
    return [
        [
            step
            for number, attempt in enumerate(attempts)
            for step in _attempt([out / f"{run}-{number}-{rank}.jsonl" for rank in range(attempt[0])])
        ]
        for run, attempts in enumerate(plan)
    ]


def _attempt(files: list[Path]) -> list[Step]:
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [
        ([n for part in parts for n in part["ids"]], [each for part in parts for each in part["hashes"]])
        for parts in zip(*ranks, strict=True)
    ]


@pytest.mark.slow
def test_batches_do_not_depend_on_ranks_threads_and_resumes(photos: Path, tmp_path: Path) -> None:
    gangs = [
        [[world, threads, 0, STEPS]] for world, threads in ((1, 1), (1, 5), (2, 2), (3, 5), (4, 1), (8, 2))
    ]
    resumed = [
        [[2, 1, 0, 1], [3, 5, 1, 3], [8, 2, 3, STEPS]],
        [[8, 1, 0, 3], [1, 2, 3, 4], [4, 5, 4, STEPS]],
        [[3, 2, 0, 0], [4, 1, 0, 6], [2, 5, 6, 7], [1, 1, 7, STEPS]],
    ]
    undisturbed, *others = _logs(photos, tmp_path / "out", [*gangs, *resumed])
    assert len(undisturbed) == STEPS
    for plan, log in zip([*gangs[1:], *resumed], others, strict=True):
        assert log == undisturbed, plan
    line = np.concatenate([ids for ids, _ in undisturbed])
    assert set(np.bincount(line, minlength=160).tolist()) == {2, 3}
    hashes = {each for _, step in undisturbed for each in step}
    assert len(hashes) == len(line), "a photo is another one in each epoch"
