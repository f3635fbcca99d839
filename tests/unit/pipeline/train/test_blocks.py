"""Files that are hashed block by block: what is read is checked, and nothing else is read."""

import itertools
import os
import random
from pathlib import Path

import pytest
import xxhash

from pipeline.train.blocks import BLOCK, Blocks, Damaged, Hasher, blocks_of, read_pieces

SIZE = 3 * BLOCK + 12345


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def test_the_digests_are_those_of_the_blocks(file: Path) -> None:
    data = file.read_bytes()
    digests = [xxhash.xxh3_128_digest(data[at : at + BLOCK]) for at in range(0, SIZE, BLOCK)]
    assert blocks_of(file) == Blocks(SIZE, b"".join(digests))
    assert blocks_of(file).hash == xxhash.xxh3_128_hexdigest(b"".join(digests))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_it_does_not_matter_in_what_pieces_a_hash_is_fed(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    hasher, at, chance = Hasher(), 0, random.Random(2)
    while at < size:
        step = chance.choice([1, 1000, BLOCK - 1, BLOCK, 2 * BLOCK])
        hasher.update(memoryview(data)[at : at + step])
        at += step
    assert hasher.blocks() == blocks_of(tmp_path / "file")
    assert hasher.blocks().hash == xxhash.xxh3_128_hexdigest(hasher.blocks().digests)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_any_size_and_order_are_filled(file: Path, seed: int) -> None:
    chance, data = random.Random(seed), file.read_bytes()
    cuts = sorted(chance.sample(range(SIZE), 60))
    pieces = [(a, memoryview(bytearray(b - a))) for a, b in itertools.pairwise(cuts)]
    wanted = chance.sample(pieces, 30)
    read_pieces(file, blocks_of(file), wanted)
    for at, memory in pieces:
        there = (at, memory) in wanted
        assert bytes(memory) == (data[at : at + len(memory)] if there else bytes(len(memory)))


def test_more_pieces_in_a_block_than_a_system_call_takes(file: Path) -> None:
    data = file.read_bytes()
    pieces = [(at, memoryview(bytearray(10))) for at in range(100, 100 + 5000 * 20, 20)]
    assert len(pieces) > os.sysconf("SC_IOV_MAX")
    read_pieces(file, blocks_of(file), pieces)
    assert all(bytes(memory) == data[at : at + 10] for at, memory in pieces)


def test_a_flipped_bit_is_found_by_who_reads_its_block_alone(file: Path) -> None:
    blocks = blocks_of(file)
    data = bytearray(file.read_bytes())
    data[BLOCK + 7] ^= 1
    file.write_bytes(data)
    beside = memoryview(bytearray(4))  # in the same block, not the byte itself
    with pytest.raises(Damaged, match="the hash of file does not agree"):
        read_pieces(file, blocks, [(2 * BLOCK - 4, beside)])
    read_pieces(file, blocks, [(0, beside)])
    read_pieces(file, blocks, [(2 * BLOCK, beside)])


def test_another_size_is_found_by_whoever_reads_anything(file: Path) -> None:
    blocks = blocks_of(file)
    os.truncate(file, SIZE - 1)
    with pytest.raises(Damaged, match=f"file has {SIZE - 1} bytes, expected {SIZE}"):
        read_pieces(file, blocks, [(0, memoryview(bytearray(4)))])
