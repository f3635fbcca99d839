from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.files import file_reader
from pipeline.data.scan import Scan, scan
from pipeline.errors import DataError

from .conftest import image_bytes, samples


def _scan(path: Path, names: dict[str, int] | None = None) -> Scan:
    with file_reader(path) as read_at:
        return scan(str(path), path.stat().st_size, read_at, names or {})


@pytest.mark.parametrize("edit, found", [
    (lambda m: [m[0], m[2], m[1], m[3]], r"x\.tar: 0000 has no label"),
    (lambda m: [*m, *m[:2]], r"x\.tar: 0000 comes a second time"),
    (lambda m: [m[0], m[1], m[1], *m[2:]], r"x\.tar: 0000 comes a second time"),
    (lambda m: m[1:], r"x\.tar: 0000 has 0 images"),
    (lambda m: [m[0], ("0000.png", b"x"), *m[1:]], r"x\.tar: 0000 has 2 images"),
    (lambda m: [m[0], ("0000.cls", b"cat")], r"'cat' in .*x\.tar: 0000\.cls"),
    (lambda m: [m[0], ("0000.cls", b"\xff")], r"in .*x\.tar: 0000\.cls"),
    (lambda m: [m[0], ("0000.json", b"[1]")], r"in .*x\.tar: 0000\.json"),
    (lambda m: [m[0], ("0000.cls", b"-1")], r"label -1 in .*x\.tar: 0000\.cls"),
])  # fmt: skip
def test_incomplete_samples_are_named(write_tar: Callable[..., Path], edit: Callable, found: str) -> None:
    with pytest.raises(DataError, match=found):
        _scan(write_tar("x.tar", edit(samples(2))))


def test_labels_beyond_the_class_names(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", image_bytes()), ("a.cls", b"2")])
    with pytest.raises(DataError, match="label 2 in") as caught:
        _scan(path, {"dog": 0, "cat": 1})
    assert "0 to 1" in caught.value.expected


def test_faults_that_are_taken_leave_the_rest(write_tar: Callable[..., Path]) -> None:
    content = samples(6)
    parts = [content[:2], content[4:5], content[2:4], content[5:6], content[:2], content[6:]]
    path = write_tar("x.tar", [member for part in parts for member in part])
    faults: list[DataError] = []
    with file_reader(path) as read_at:
        found = scan(str(path), path.stat().st_size, read_at, {}, faults.append)
    assert found.key == ["0000", "0001", "0003", "0004", "0005"]
    assert [fault.found.removeprefix(f"{path}: ") for fault in faults] == [
        "0002 has no label among its members (jpg)",
        "0002 comes a second time",
        "0000 comes a second time",
    ]
