"""Stage prepare: one dataset → shards, indexes and a manifest in the job's directory."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import FolderSource, RunConfig, SourceSettings, WebdatasetSource
from pipeline.config_io import digest_of
from pipeline.data.braces import expand_braces
from pipeline.graph import Job

STAGE = "prepare"
VERSION = 1


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

    So a photo that was added or replaced makes the dataset due again. What cannot be seen yet (a
    missing directory) is reported when the job runs, with the source's own message.
    """
    if isinstance(settings, FolderSource):
        roots = [Path(settings.path, name) for name in (settings.train, settings.test)]
        files = [
            file for root in roots if root.is_dir() for file in sorted(root.rglob("*")) if file.is_file()
        ]
    elif isinstance(settings, WebdatasetSource):
        # What the patterns name, and no neighbour: a shard that arrives later is not part of this dataset.
        names = {Path(name) for pattern in (settings.train, settings.test) for name in expand_braces(pattern)}
        files = sorted(name for name in names if name.is_file())
    else:
        return None
    return digest_of([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
