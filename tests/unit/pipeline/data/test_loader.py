from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import AugmentSettings, DataView, OrderSettings, WebdatasetSource
from pipeline.data import assemble
from pipeline.data.assemble import STAND_IN, Bad, Batch
from pipeline.data.describe import describe_batch
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare
from pipeline.errors import ConfigError, DataError

from .conftest import image_bytes

ORDER = OrderSettings(lanes=6, window=9)


def _train(view: View, *, rank: int = 0, world: int = 1, **options: object) -> list[Batch]:
    with _loader(view, rank=rank, world=world, **options) as loader:
        return list(loader)


def _loader(view: View, **options: object) -> TrainLoader:
    given = dict(
        batch=24, image_size=24, augment=AugmentSettings(), order=ORDER, seed=5, threads=1,
        bad_samples=0.001, rank=0, world=1, steps=12,
    )  # fmt: skip
    return TrainLoader(view, **(given | options))


def _same(first: Batch, parts: list[Batch]) -> None:
    for name in ("images", "labels", "weights", "ids"):
        joined = torch.cat([getattr(batch, name) for batch in parts])
        assert torch.equal(getattr(first, name), joined), name
    assert {batch.step for batch in parts} == {first.step}


@pytest.fixture(scope="module")
def undisturbed(train_view: View) -> list[Batch]:
    """Twelve batches of 24 from 130 samples: two epochs and a bit."""
    return _train(train_view)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("threads", [1, 4])
def test_ids_and_pixels_do_not_depend_on_ranks_and_threads(
    train_view: View, undisturbed: list[Batch], world: int, threads: int
) -> None:
    ranks = [_train(train_view, rank=rank, world=world, threads=threads) for rank in range(world)]
    for step, whole in enumerate(undisturbed):
        _same(whole, [batches[step] for batches in ranks])


@pytest.mark.parametrize("first", [0, 1, 5, 6, 11])
def test_restarting_at_any_step_goes_on_as_if_nothing_had_happened(
    train_view: View, undisturbed: list[Batch], first: int
) -> None:
    """Batch 5 straddles the first and second epoch."""
    resumed = [_train(train_view, first_step=first, rank=rank, world=2) for rank in range(2)]
    assert len(resumed[0]) == 12 - first
    for step in range(first, 12):
        _same(undisturbed[step], [batches[step - first] for batches in resumed])


def test_each_epoch_holds_every_sample_once(train_view: View, undisturbed: list[Batch]) -> None:
    ids = np.concatenate([batch.ids.numpy() for batch in _train(train_view, steps=65)])
    assert np.bincount(ids).tolist() == [12] * 130
    labels = train_view.labels()
    assert all(np.array_equal(labels[batch.ids], batch.labels) for batch in undisturbed)


def test_an_image_is_cropped_anew_each_epoch(train_view: View, undisturbed: list[Batch]) -> None:
    images = torch.cat([batch.images for batch in undisturbed])
    ids = torch.cat([batch.ids for batch in undisturbed])
    first, second = (ids == ids[0]).nonzero()[:2, 0]
    assert not torch.equal(images[first], images[second])


def test_batches_are_uint8_and_channels_last(undisturbed: list[Batch]) -> None:
    batch = undisturbed[0]
    assert batch.images.shape == (24, 3, 24, 24)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.ids.dtype, batch.weights.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )


def test_a_view_of_a_part_is_read_in_its_own_order(glyphs: Path) -> None:
    view = open_view(DataView(path=".", split="train", samples=50, held_out=0.2, part="kept"), glyphs)
    ids = torch.cat([batch.ids for batch in _train(view, batch=10, steps=8)]).numpy()
    assert np.array_equal(np.sort(ids[:40]), view.ids)
    assert np.array_equal(np.sort(ids[40:]), view.ids)


def test_described_batches_are_those_that_are_read(train_view: View, undisturbed: list[Batch]) -> None:
    lines = describe_batch(train_view, ORDER, seed=5, batch=24, step=5, ranks=3)
    assert [line["id"] for line in lines] == undisturbed[5].ids.tolist()
    assert [line["rank"] for line in lines] == [0] * 8 + [1] * 8 + [2] * 8
    assert sorted(line["position"] for line in lines) == list(range(120, 144))
    assert {line["epoch"] for line in lines} == {0, 1}
    assert all(line["key"] == train_view.key(line["id"]) for line in lines)
    assert lines[0]["shard"].startswith("train/")


@pytest.fixture
def damaged(write_tar: Callable[..., Path], tmp_path: Path) -> View:
    """60 samples, of which 7 and 31 are no images."""
    content = []
    for n in range(60):
        data = {7: b"text", 31: b""}.get(n, image_bytes(size=(24, 24), seed=n))
        content += [(f"s{n:02d}.jpg", data), (f"s{n:02d}.cls", b"1")]
    path = write_tar("x.tar", content)
    prepare(WebdatasetSource(source="webdataset", train=str(path), test=str(path)), tmp_path / "out")
    return open_view(DataView(path="out", split="train"), tmp_path)


def test_a_bad_sample_has_weight_0_and_shifts_nothing(damaged: View) -> None:
    with _loader(damaged, batch=20, steps=6, bad_samples=0.04) as loader:
        batches = list(loader)
        assert [
            (bad.id, bad.key, bad.reason) for bad in sorted(loader.quarantine, key=lambda bad: bad.id)
        ] == [
            (7, "s07", "not an image"),
            (31, "s31", "empty"),
        ]
    ids, weights = (torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "weights"))
    assert torch.equal(weights == 0, torch.isin(ids, torch.tensor([7, 31])))
    assert np.bincount(ids).tolist() == [2] * 60
    images = torch.cat([b.images for b in batches])
    assert torch.equal(images[weights == 0], torch.full_like(images[weights == 0], 128))


def test_the_budget_is_for_all_ranks_together(damaged: View) -> None:
    """Here each of two ranks meets one bad sample, and one is allowed: neither alone is over the budget."""
    loaders = [_loader(damaged, batch=60, steps=1, rank=rank, world=2) for rank in range(2)]
    for loader in loaders:
        list(loader)
        loader.close()
    found = [bad for loader in loaders for bad in loader.fresh]
    assert sorted(bad.id for bad in found) == [7, 31]
    assert {len(loader.fresh) for loader in loaders} == {1}
    for loader in loaders:
        with pytest.raises(DataError, match="2 samples cannot be"):
            loader.take_over(found)
        assert [bad.id for bad in loader.quarantine] == [7, 31]


def test_a_sample_counts_once_whichever_ranks_meet_it(damaged: View) -> None:
    with _loader(damaged, batch=20, steps=6, bad_samples=0.04) as loader:
        list(loader)
        assert sorted(bad.id for bad in loader.fresh) == [7, 31]
        other = Bad(31, "s31", "empty")
        assert [bad.id for bad in loader.take_over([*loader.fresh, other])] == [7, 31]
        assert loader.fresh == []
        assert loader.take_over([other]) == []


def test_more_bad_samples_than_the_budget_stop(damaged: View) -> None:
    with _loader(damaged, batch=20, steps=6) as loader:
        list(loader)
        with pytest.raises(DataError, match="2 samples cannot be") as caught:
            loader.take_over(loader.fresh)
    assert "s07: not an image" in caught.value.found
    assert "at most 1 of 60" in caught.value.expected


def test_a_lost_shard_is_raised_and_nothing_hangs(glyphs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(glyphs, copy)
    (copy / "train/000002.tar").unlink()
    shard = copy / "train/000001.tar"
    view = open_view(DataView(path=".", split="train"), copy)
    with _loader(view) as loader, pytest.raises(DataError, match=r"000002\.tar cannot be opened"):
        list(loader)
    (copy / "train/000002.tar").write_bytes((glyphs / "train/000002.tar").read_bytes())
    shard.write_bytes(shard.read_bytes()[:5000])
    view = open_view(DataView(path=".", split="train"), copy)
    with (
        _loader(view) as loader,
        pytest.raises(DataError, match=r"000001\.tar ends before byte .*sample 'train/"),
    ):
        list(loader)


def test_closing_early_ends_the_threads(train_view: View) -> None:
    before = threading.active_count()
    loader = _loader(train_view, threads=4, steps=10_000)
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_small_images_are_left_to_one_thread(train_view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "_SMALL_BYTES", 4096)
    with _loader(train_view, threads=3) as loader:
        next(loader)
        assert sum(thread.name.startswith("decode") for thread in threading.enumerate()) == 1


def test_threads_of_torch_are_left_alone(train_view: View) -> None:
    before = torch.get_num_threads()
    _train(train_view, threads=2, steps=2)
    assert torch.get_num_threads() == before


def test_memory_stays_flat_over_epochs(glyphs: Path) -> None:
    """In a process of its own: from the 4th to the 24th epoch the peak grows by less than 4 MiB."""
    code = f"""
        import resource
        from pathlib import Path
        from pipeline.config import AugmentSettings, DataView, OrderSettings
        from pipeline.data.loader import TrainLoader
        from pipeline.data.view import open_view
        view = open_view(DataView(path=".", split="train"), Path({str(glyphs)!r}))
        with TrainLoader(
            view, batch=26, image_size=64, augment=AugmentSettings(), order=OrderSettings(), seed=0,
            threads=2, bad_samples=0, rank=0, world=1, steps=5 * 24,
        ) as loader:
            for batch in loader:
                if batch.step in (19, 119):
                    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    early, late = (int(kib) for kib in run.stdout.split())
    assert late - early < 4 * 1024


def test_waiting_is_measured(train_view: View) -> None:
    with _loader(train_view) as loader:
        next(loader)
        assert loader.wait_s > 0


def test_state_is_five_values_and_is_compared(train_view: View, glyphs: Path) -> None:
    saved = _loader(train_view).state(7)
    assert saved == {
        "fingerprint": load_manifest(glyphs).splits["train"].fingerprint,
        "seed": 5,
        "batch": 24,
        "position": 168,
        "order": {"version": 1, "lanes": 6, "window": 9, "chunk": train_view.chunk},
    }
    _loader(train_view, first_step=7).check_state(saved)
    for options, name in (
        ({"seed": 6}, "seed 6 of the data now, 5 in"),
        ({"batch": 12}, "batch 12 of the data now, 24 in"),
        ({"first_step": 6}, "position 144 of the data now, 168 in"),
        ({"order": OrderSettings(lanes=7)}, "order .*7.* of the data now, .*6"),
    ):
        with pytest.raises(ConfigError, match=name):
            _loader(train_view, **({"first_step": 7} | options)).check_state(saved)
    other = saved | {"fingerprint": "0" * 64}
    with pytest.raises(ConfigError, match="fingerprint"):
        _loader(train_view, first_step=7).check_state(other)
    _loader(train_view, first_step=7).check_state(other, accept_new_data=True)


def test_a_batch_that_does_not_divide_is_refused_at_once(train_view: View) -> None:
    with pytest.raises(ConfigError, match="a batch of 25 on 2 ranks"):
        _loader(train_view, batch=25, world=2)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("samples, batch", [(26, 8), (26, 100), (26, 1), (3, 7), (1, 4)])
def test_evaluation_counts_each_sample_once(glyphs: Path, world: int, samples: int, batch: int) -> None:
    view = open_view(DataView(path=".", split="test", samples=samples), glyphs)
    ids, lengths = [], []
    for rank in range(world):
        options = dict(batch=batch, image_size=16, augment=AugmentSettings(), threads=2)
        with EvalLoader(view, rank=rank, world=world, **options) as loader:
            batches = list(loader)
        lengths.append([len(batch.ids) for batch in batches])
        for part in batches:
            assert torch.equal(part.weights == 1, part.ids >= 0)
            assert bool((part.images[part.ids < 0] == STAND_IN).all()), "padding is memory that nobody wrote"
            ids += part.ids[part.weights == 1].tolist()
    assert sorted(ids) == view.sample_id(np.arange(samples)).tolist()
    assert all(length == lengths[0] for length in lengths)


def test_evaluation_pixels_do_not_depend_on_ranks(test_view: View) -> None:
    def images(world: int) -> dict[int, torch.Tensor]:
        found = {}
        for rank in range(world):
            with EvalLoader(
                test_view,
                batch=8,
                image_size=16,
                augment=AugmentSettings(),
                threads=1,
                rank=rank,
                world=world,
            ) as loader:
                for batch in loader:
                    found |= {
                        int(i): image for i, image in zip(batch.ids, batch.images, strict=True) if i >= 0
                    }
        return found

    one, three = images(1), images(3)
    assert one.keys() == three.keys()
    assert all(torch.equal(one[i], three[i]) for i in one)
