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


def test_compressed_tars_name_the_command(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [("a.jpg", b"1")])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="compressed with gzip") as caught:
        _members(path)
    assert f"gunzip --keep {path}" in caught.value.do
