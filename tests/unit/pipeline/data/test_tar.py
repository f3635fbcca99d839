from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.files import file_reader
from pipeline.data.tar import members
from pipeline.errors import DataError, UserError


def _members(path: Path) -> list[tuple[str, bytes]]:
    with file_reader(path) as read_at:
        return [(m.name, read_at(m.offset, m.size)) for m in members(str(path), path.stat().st_size, read_at)]


CONTENT = [
    ("a.jpg", b"x" * 700),
    ("dir/b.cls", b""),
    ("n" * 180 + "/long.jpg", b"long" * 300),
    ("ünï/ç.jpg", b"y" * 512),
]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_content_as_tarfile_sees_them(write_tar: Callable[..., Path], tar_format: int) -> None:
    content = [item for item in CONTENT if tar_format != tarfile.USTAR_FORMAT or len(item[0]) < 100]
    assert _members(write_tar("x.tar", content, tar_format=tar_format)) == content


def test_directories_and_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert _members(path) == [("a.jpg", b"abc")]


def test_sizes_in_base_256_and_in_pax() -> None:
    """9 GiB do not fit the octal field; GNU writes base 256, pax an extra record."""
    size = 9 * 2**30
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big.jpg")
        info.size = size
        header = info.tobuf(tar_format)

        def read_at(offset: int, length: int, header: bytes = header) -> bytes:
            return header[offset : offset + length] if offset < len(header) else bytes(length)

        (member,) = members("x", len(header) + size + 1024, read_at)
        assert (member.size, member.offset) == (size, len(header))


def test_a_tar_that_is_cut_off_names_its_member(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)])
    whole = path.read_bytes()
    path.write_bytes(whole[: 1536 + 512 + 100])
    with pytest.raises(DataError, match=r"x\.tar is cut off.*'b\.jpg'"):
        _members(path)
    path.write_bytes(whole[:3072])  # between two members: nothing but the end is missing
    with pytest.raises(DataError, match=r"without the closing block.*'b\.jpg'"):
        _members(path)


def test_a_damaged_header(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="no valid tar header at byte 1024"):
        _members(path)


def _all(path: Path) -> tuple[list[tuple[str, bytes]], list[str]]:
    """What is whole in a tar, and the faults."""
    faults: list[DataError] = []
    with file_reader(path) as read_at:
        found = members(str(path), path.stat().st_size, read_at, faults.append)
        whole = [(member.name, read_at(member.offset, member.size)) for member in found]
    return whole, [fault.found for fault in faults]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_is_whole_before_and_behind_a_damaged_header(
    write_tar: Callable[..., Path], tar_format: int
) -> None:
    content = [(f"{n}.jpg", bytes([n]) * (700 * n)) for n in range(6)]
    path = write_tar("x.tar", content, tar_format=tar_format)
    with tarfile.open(path) as tar:
        place = tar.getmembers()[3].offset_data - 512
    data = bytearray(path.read_bytes())
    data[place + 120] ^= 1
    path.write_bytes(data)
    whole, faults = _all(path)
    assert whole == content[:3] + content[4:]
    assert len(faults) == 1
    assert f"no valid tar header at byte {place} (last member '2.jpg')" in faults[0]


def test_every_place_where_a_tar_may_be_cut_off(write_tar: Callable[..., Path]) -> None:
    content = [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 1024), ("c.jpg", b"3")]
    path = write_tar("x.tar", content)
    data = path.read_bytes()
    ends = [512 + 600, 1536 + 512 + 1024, 3072 + 512 + 1]
    for size in range(0, 4096, 37):
        path.write_bytes(data[:size])
        whole, faults = _all(path)
        assert whole == content[: sum(end <= size for end in ends)], size
        assert len(faults) == 1, size
        assert "is cut off" in faults[0]


def test_tars_put_one_behind_the_other(write_tar: Callable[..., Path]) -> None:
    """Other readers stop at the first closing block, and nobody is told."""
    first, second = write_tar("x.tar", [("a.jpg", b"1")]), write_tar("y.tar", [("b.jpg", b"2")])
    size = first.stat().st_size
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=rf"goes on at byte {size}, behind its closing block at 1024"):
        _members(first)
    whole, faults = _all(first)
    assert whole == [("a.jpg", b"1"), ("b.jpg", b"2")]
    assert len(faults) == 1


def test_a_hole_of_zeros(write_tar: Callable[..., Path]) -> None:
    """As a download in parts leaves it, of which one did not arrive."""
    content = [(f"{n}.jpg", bytes([n + 1]) * 900) for n in range(6)]
    path = write_tar("x.tar", content)
    data = bytearray(path.read_bytes())
    data[1536 + 700 : 3 * 1536 + 700] = bytes(2 * 1536)
    path.write_bytes(data)
    whole, faults = _all(path)
    assert whole == [content[0], ("1.jpg", content[1][1][:188] + bytes(712)), *content[4:]]
    assert len(faults) == 1
    assert "goes on at byte" in faults[0]


def test_a_header_whose_length_is_no_number(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data = bytearray(path.read_bytes())
    data[124:135] = b"9" * 11
    data[148:156] = b"%06o\0 " % (sum(data[:512]) - sum(data[148:156]) + 8 * 32)
    path.write_bytes(data)
    with pytest.raises(DataError, match="no valid tar header at byte 0"):
        _members(path)
    assert _all(path)[0] == [("b.jpg", b"2")]


def test_compressed_tars_name_the_command(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", b"1")])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="compressed with gzip") as caught:
        _members(path)
    assert f"gunzip --keep {path}" in caught.value.do
