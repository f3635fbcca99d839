"""Sweeps over worlds, threads, shard sizes and restarts, and over everything bad that a shard may hold."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import AugmentSettings, DataView, OrderSettings, WebdatasetSource, WriteSettings
from pipeline.data.assemble import Batch
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare

from .conftest import image_bytes, samples

BATCH, STEPS = 48, 5  # 48 gives each of 8 ranks whole pairs, as mixing needs
# One sample; more shards than samples a rank; fewer shards than ranks; uneven; an odd tail.
LAYOUTS = ([1], [1] * 9, [40, 13], [7, 1, 30, 2, 11], [25, 24])


def _view(root: Path, write_tar: Callable[..., Path], layout: list[int]) -> View:
    name = "-".join(map(str, layout))
    for number, count in enumerate(layout):
        write_tar(f"{name}-{number}.tar", samples(count, f"{number}-"))
    pattern = str(root / f"{name}-{{0..{len(layout) - 1}}}.tar")
    write = WriteSettings(chunk_bytes=9_000)
    prepare(WebdatasetSource(source="webdataset", train=pattern, test=pattern, write=write), root / name)
    return open_view(DataView(path=name, split="train"), root)


def _train(
    view: View, seed: int, lanes: int, world: int, threads: int, first: int, last: int, rank: int
) -> TrainLoader:
    return TrainLoader(
        view, batch=BATCH, image_size=8, augment=AugmentSettings(mixup=0.4), seed=seed,
        order=OrderSettings(lanes=lanes, window=5), threads=threads, bad_samples=0,
        rank=rank, world=world, first_step=first, steps=last,
    )  # fmt: skip


def _together(parts: list[list[Batch]]) -> list[dict[str, torch.Tensor]]:
    """What ranks read, step by step, put together again."""
    names = ("images", "labels", "weights", "ids")
    return [
        {name: torch.cat([getattr(batch, name) for batch in step]) for name in names}
        for step in zip(*parts, strict=True)
    ]


def _batches(
    view: View, seed: int, lanes: int, world: int, threads: int, first: int, last: int
) -> list[dict[str, torch.Tensor]]:
    """The batches first … last-1 from all ranks."""
    parts = []
    for rank in range(world):
        with _train(view, seed, lanes, world, threads, first, last, rank) as loader:
            parts.append(list(loader))
    return _together(parts)


# Batches 0 … 5 are the first epoch of 288 samples, 6 … 11 the second: saved before the first, after the
# first, in the middle, before and after the last of an epoch, after the first of the next.
SAVES = (0, 1, 3, 5, 6, 7, 11, 12, 13)


@pytest.mark.parametrize("layout", [[100, 88, 100], [101, 89, 100]], ids=["whole batches", "across"])
def test_saved_at_each_edge_of_an_epoch_and_resumed_on_other_ranks(
    tmp_path: Path, write_tar: Callable[..., Path], layout: list[int]
) -> None:
    """Nine saves in one run, each taken up with the state as a checkpoint holds it, on other ranks and
    threads than before. Of 290 samples, batches hold the end of one epoch and the start of the next."""
    view = _view(tmp_path, write_tar, layout)
    expected = _batches(view, 11, 4, 1, 1, 0, 15)
    found: list[dict[str, torch.Tensor]] = []
    first, saved = 0, None
    gangs = ((1, 1), (3, 2), (8, 1), (2, 5), (4, 2))
    for number, last in enumerate([*SAVES, 15]):
        world, threads = gangs[number % len(gangs)]
        parts = []
        for rank in range(world):
            with _train(view, 11, 4, world, threads, first, last, rank) as loader:
                if saved is not None:
                    loader.check_state(json.loads(saved))
                parts.append(list(loader))
                state = json.dumps(loader.state(last))
        found += _together(parts)
        first, saved = last, state
    assert len(found) == len(expected) == 15
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    ids = torch.cat([batch["ids"] for batch in found]).numpy()
    for batches in range(1, 16):
        epochs = batches * BATCH // view.samples
        counts = np.bincount(ids[: batches * BATCH], minlength=view.samples)
        assert set(counts.tolist()) <= {epochs, epochs + 1}


worlds, threads_used = st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 5])
attempts = st.lists(st.tuples(worlds, threads_used), min_size=2, max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_run_of_attempts_gives_the_undisturbed_batches(
    tmp_path: Path, write_tar: Callable[..., Path], layout: list[int]
) -> None:
    """Ranks, threads and stops are drawn; what each attempt read is put one after the other."""
    view = _view(tmp_path, write_tar, layout)

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(attempts, st.data(), st.integers(0, 2**31), st.integers(1, 9))
    def check(worlds: list[tuple[int, int]], data: st.DataObject, seed: int, lanes: int) -> None:
        stops = data.draw(
            st.lists(st.integers(0, STEPS), min_size=len(worlds) - 1, max_size=len(worlds) - 1).map(sorted)
        )
        expected = _batches(view, seed, lanes, 1, 1, 0, STEPS)
        found: list[dict[str, torch.Tensor]] = []
        for (world, threads), (first, last) in zip(worlds, pairwise([0, *stops, STEPS]), strict=True):
            found += _batches(view, seed, lanes, world, threads, first, last)
        for one, other in zip(expected, found, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
        ids = np.concatenate([batch["ids"].numpy() for batch in expected])
        epochs = len(ids) // view.samples
        # Whole epochs hold every sample once; what is left is a part of the next.
        assert set(np.bincount(ids, minlength=view.samples).tolist()) <= {epochs, epochs + 1}

    check()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_world_and_number_of_threads(
    tmp_path: Path, write_tar: Callable[..., Path], layout: list[int], world: int, threads: int
) -> None:
    view = _view(tmp_path, write_tar, layout)
    expected = _batches(view, 3, 4, 1, 1, 0, STEPS)
    found = _batches(view, 3, 4, world, threads, 0, STEPS)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    counted: list[int] = []
    for rank in range(world):
        with EvalLoader(
            view, batch=16, image_size=8, augment=AugmentSettings(), threads=threads, rank=rank, world=world
        ) as loader:
            counted += [int(n) for batch in loader for n in batch.ids[batch.weights > 0]]
    assert sorted(counted) == list(range(view.samples))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_shard_of_bad_things_keeps_what_is_good(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    """Each bad image is counted by its reason and named by its key; the others are read as ever. The tar is
    damaged too: a key comes twice, a header is broken, the end is missing."""
    photo = image_bytes(size=(40, 30))
    picture = Image.open(io.BytesIO(photo))
    bomb = _encoded(Image.new("1", (20_000, 20_000)), "PNG")
    images = {
        "good": ("jpg", photo, None),
        "cmyk": ("jpg", _encoded(picture.convert("CMYK"), "JPEG"), None),
        "palette": ("png", _encoded(picture.convert("P"), "PNG"), None),
        "deep": ("png", _encoded(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG"), None),
        "moving": ("webp", _encoded(picture, "WEBP", save_all=True, append_images=[picture]), None),
        "../../climbs/out": ("jpg", photo, None),
        "cut": ("jpg", photo[: len(photo) // 2], "truncated"),
        "flipped": ("jpg", bytes([photo[0] ^ 255]) + photo[1:], "not an image"),
        "empty": ("jpg", b"", "empty"),
        "text": ("jpg", b"<html>not found</html>", "not an image"),
        "bomb": ("png", bomb, "too many pixels"),
    }
    members = []
    for key, (extension, data, _) in images.items():
        members += [(f"{key}.{extension}", data), (f"{key}.cls", b"1")]
    lost = [("lost.jpg", photo), ("lost.cls", b"0"), ("behind.jpg", photo), ("behind.cls", b"0")]
    members += [("good.jpg", photo), ("good.cls", b"0"), *lost, ("end.jpg", photo), ("end.cls", b"1")]
    path = write_tar("bad.tar", members)
    tar = bytearray(path.read_bytes())
    broken = tar.index(b"lost.jpg")
    tar[broken] ^= 1
    path.write_bytes(tar[: tar.index(b"end.jpg") + 600])
    source = WebdatasetSource(source="webdataset", train=str(path), test=str(path), allow_damaged=True)
    left_out = prepare(source, tmp_path / "out").splits["train"].bad
    assert [bad.reason.split(" (")[0] for bad in left_out] == [
        f"has no valid tar header at byte {broken}",
        "good comes a second time",
        "lost has 0 images among its members",
        f"is cut off: 'end.jpg' needs {tar.index(b'end.jpg') + 512 + len(photo)} bytes, the file has "
        f"{tar.index(b'end.jpg') + 600}",
    ]
    view = open_view(DataView(path="out", split="train"), tmp_path)
    with EvalLoader(
        view, batch=4, image_size=8, augment=AugmentSettings(), threads=2, rank=0, world=1
    ) as loader:
        batches = list(loader)
        reasons = {bad.key: bad.reason for bad in loader.quarantine}
    expected = {key: reason for key, (_, _, reason) in images.items() if reason is not None}
    assert reasons == expected
    read = {int(n) for batch in batches for n in batch.ids[batch.weights > 0]}
    assert {view.key(n) for n in read} == {*images, "behind"} - expected.keys()
    # The member that names a place outside was read where it lies; nothing was written there.
    assert not (tmp_path.parent / "climbs").exists()
