"""Stage prepare: one dataset → shards, indexes and a manifest in the job's directory."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import FolderSource, RunConfig, SourceSettings, WebdatasetSource
from pipeline.config_io import digest_of
from pipeline.data.braces import expand_braces
from pipeline.data.remote import is_remote
from pipeline.data.stamps import stamps
from pipeline.graph import Job

STAGE = "prepare"
VERSION = 2  # 2: restart markers in resized images


def job_name(dataset: str) -> str:
    return f"{STAGE}/{dataset}"


def jobs(config: RunConfig) -> list[Job]:
    """One job for each dataset that the run uses."""
    used = {*config.pretrain.shares, *config.transfer.datasets}
    return [
        Job(
            name=job_name(name),
            stage=STAGE,
            version=VERSION,
            slice={"dataset": settings.model_dump(mode="json"), "files": files},
            identity={"dataset": settings.model_dump(mode="json", exclude_defaults=True), "files": files},
        )
        for name, settings in config.datasets.items()
        if name in used
        for files in [_state_of_files(settings)]
    ]


def _state_of_files(settings: SourceSettings) -> str | None:
    """Digest of names, sizes and times of the files that a source reads; None where it makes its own.

    So a photo that was added or replaced makes the dataset due again. Of shards on a store, sizes and
    checksums are asked for, and none of their bytes. What cannot be seen yet (a missing directory) is
    reported when the job runs, with the source's own message.

    Raises:
        ReadError: a store does not answer.
    """
    if isinstance(settings, FolderSource):
        roots = [Path(settings.path, name) for name in (settings.train, settings.test)]
        files = [
            file for root in roots if root.is_dir() for file in sorted(root.rglob("*")) if file.is_file()
        ]
        return digest_of(_local(files))
    if not isinstance(settings, WebdatasetSource) or settings.frozen:
        return None
    # What the patterns name, and no neighbour: a shard that arrives later is not part of this dataset.
    names = sorted({name for pattern in (settings.train, settings.test) for name in expand_braces(pattern)})
    remote = tuple(name for name in names if is_remote(name))
    here = sorted(Path(name) for name in names if name not in set(remote))
    found = _local([path for path in here if path.is_file()])
    return digest_of([*found, *stamps(remote)] if remote else found)


def _local(files: list[Path]) -> list[tuple[str, int, int]]:
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
