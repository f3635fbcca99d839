"""Source → shards, indexes and manifest: who writes which shard, and when the dataset is there.

Samples are shuffled over the whole split before they are written, so that a window of any shard is a
fair sample. Everything is written in DIRECTORY/.partial and moved; the manifest comes last, so a dataset
is whole or not there. Writing that was interrupted goes on with the shards that are missing.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from pipeline.config import DatasetSettings, WebdatasetSource
from pipeline.data.adopt import adopt
from pipeline.data.manifest import FILE, BadImage, Manifest, Split, digest, save_manifest
from pipeline.data.progress import Progress, Report, Run
from pipeline.data.shards import Task, Written, index_shard, keep_open, write_shard
from pipeline.data.sources.catalog import open_source
from pipeline.errors import DataError
from pipeline.rundir import read_json, write_json

_PARTIAL = ".partial"


def prepare(
    settings: DatasetSettings, directory: Path, *, report: Report = lambda event: None, run: Run = map
) -> Manifest:
    """Write, or adopt, one dataset into `directory`; what was there before is replaced.

    Args:
        settings: which source, and how it is written.
        directory: gets `manifest.json`, `train/` and `test/`; other files in it stay.
        report: called about twice a second, see progress.py.
        run: spreads the shards over processes or machines that see `directory`.

    Raises:
        UserError: the source cannot be used as the settings say.
        DataError: a split is empty, or too many images are unreadable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).unlink(missing_ok=True)
    if isinstance(settings, WebdatasetSource):
        manifest = adopt(settings, directory, report=report, run=run)
    else:
        manifest = _write(settings, directory, report, run)
    save_manifest(directory, manifest)
    return manifest


def _write(settings: DatasetSettings, directory: Path, report: Report, run: Run) -> Manifest:
    source = open_source(settings)
    for name, split in source.splits.items():
        if len(split) == 0:
            raise DataError(f"no images in split {name!r}", "at least one", "check the dataset's settings")
    parts = [f"{name} {len(split)} {split.signature()}" for name, split in source.splits.items()]
    plan = digest([settings.model_dump_json(), *parts])
    keep_open(plan, source)
    unfinished = directory / _PARTIAL
    if read_json(unfinished / "plan.json") != {"plan": plan}:
        shutil.rmtree(unfinished, ignore_errors=True)
        write_json(unfinished / "plan.json", {"plan": plan})
    splits = {}
    for name, split in source.splits.items():
        task = Task(settings, name, unfinished / name, plan)
        task.directory.mkdir(exist_ok=True)
        splits[name] = _write_split(task, len(split), report, run)
    for name in splits:
        for left in [*(unfinished / name).glob("*.json"), *(unfinished / name).glob("*.part")]:
            left.unlink()
        shutil.rmtree(directory / name, ignore_errors=True)
        (unfinished / name).rename(directory / name)
    shutil.rmtree(unfinished)
    return Manifest(source.classes, splits)


def _write_split(task: Task, length: int, report: Report, run: Run) -> Split:
    allowed = max(1, int(task.settings.bad_images * length))
    progress = Progress(task.split, length, report)
    bad: list[BadImage] = []
    shards: list[Written] = []
    numbers = range(-(-length // task.settings.write.shard_samples))
    for written in run(partial(write_shard, task), numbers):
        bad += written.bad
        if len(bad) > allowed:
            raise _too_many(task.split, bad, allowed, length)
        shards.append(written)
        progress.add(written.items)
    shards = [written for written in shards if written.samples]
    if not shards:
        raise _too_many(task.split, bad, 0, length)
    progress.end()
    chunk = chunk_samples(task.settings.write.chunk_bytes, shards)
    return Split(chunk, tuple(run(partial(index_shard, task, chunk), shards)), tuple(bad))


def _too_many(name: str, bad: list[BadImage], allowed: int, total: int) -> DataError:
    listed = "; ".join(f"{image.key}: {image.reason}" for image in bad[:5]) + " …" * (len(bad) > 5)
    return DataError(
        f"{len(bad)} of {total} images in split {name!r} cannot be read ({listed})",
        f"at most {allowed}, and at least one image that can",
        "replace or remove them, or raise `bad_images` of the dataset",
    )


def chunk_samples(chunk_bytes: int, shards: list[Written]) -> int:
    """Samples in a chunk of about `chunk_bytes`, at most those of the largest shard.

    A tar adds about 2 KiB a sample: two headers, the label, and filling up to whole blocks.
    """
    mean = sum(shard.image_bytes for shard in shards) / sum(shard.samples for shard in shards) + 2048
    return max(1, min(round(chunk_bytes / mean), max(shard.samples for shard in shards)))
