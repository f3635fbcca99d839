"""Filling fragments from a checkpoint: what is read is checked, and a damaged one sends all back."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.train.blocks import BLOCK
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.fragments import Fragment
from pipeline.train.loading import fill_from_newest, whole_reader
from pipeline.train.saving import Saver
from pipeline.train.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))
SHAPES = {"wide": (3, BLOCK // 4), "small": (7,)}  # 3 MiB, and a few bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2; each element holds its number plus the step."""
    saver = Saver(tmp_path, ALONE, 2, lambda: None, lambda event: None)
    for step in (1, 2):
        whole = {name: torch.arange(float(torch.Size(shape).numel())) for name, shape in SHAPES.items()}
        fragments = [Fragment(name, "master", 0, tensor + step) for name, tensor in whole.items()]
        saver.start(step, fragments, {"shapes": {n: list(s) for n, s in SHAPES.items()}}, {})
        saver.finish()
    return tmp_path


def part(name: str, start: int, numel: int, kind: str = "master") -> Fragment:
    return Fragment(name, kind, start, torch.full((numel,), -1.0))


def flip(root: Path, byte: int) -> None:
    """In the file of step 2: header, 3 MiB of `wide`, `small`."""
    path = root / "step-000000002" / "rank-00000-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def fill(root: Path, *fragments: Fragment) -> tuple[int | None, list[str]]:
    told: list[str] = []
    found = fill_from_newest(root, list(fragments), SHAPES, ALONE, told.append)
    return None if found is None else found.step, told


def test_parts_of_tensors_are_filled_across_blocks(root: Path) -> None:
    wanted = [part("small", 2, 3), part("wide", 100, BLOCK // 2), part("wide", BLOCK // 2 + 500, 9)]
    assert fill(root, *wanted) == (2, [])
    for fragment in wanted:
        assert torch.equal(fragment.data, torch.arange(len(fragment.data)) + fragment.start + 2.0)


def test_a_part_that_is_damaged_sends_those_back_who_read_it(root: Path) -> None:
    flip(root, 2 * BLOCK + 100)
    first, last = part("wide", 0, 5), part("wide", 600_000, 5)
    assert fill(root, first) == (2, [])
    step, [told] = fill(root, first, last)
    assert step == 1
    assert "step-000000002 is damaged (the hash of rank-00000-of-00001.safetensors does not agree)" in told
    assert torch.equal(first.data, torch.arange(5) + 1.0)


def test_what_is_exported_is_checked_too(root: Path) -> None:
    flip(root, BLOCK + 100)
    newest = complete_checkpoints(root)[0]
    with whole_reader(newest) as read:
        assert torch.equal(read("small"), torch.arange(7) + 2.0)
    with (
        pytest.raises(DataError, match=r"step-000000002 is damaged \(the hash of"),
        whole_reader(newest) as read,
    ):
        read("wide")


def test_what_a_checkpoint_does_not_hold_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"0 of 7 elements of small \(exp_avg\) in step-000000002"):
        fill(root, part("small", 0, 7, "exp_avg"))


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert fill(tmp_path, part("small", 0, 7)) == (None, [])
