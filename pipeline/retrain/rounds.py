"""How a round becomes a run: its key, its configuration, and what earlier rounds have already done.

A round is an ordinary run in a directory of its own, with the shards that were there when it began and,
where that is asked for, the champion's weights to begin from.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from pipeline.config import RunConfig, WebdatasetSource
from pipeline.config_io import digest_of
from pipeline.data.remote import is_remote
from pipeline.errors import UserError
from pipeline.graph import plan
from pipeline.retrain.state import SEEN, Round, State
from pipeline.stages import compare
from pipeline.stages.catalog import all_jobs

# May stand in a pattern for several names, so they must not stand in a name.
_SPECIAL = set("{},")


def key_of(config: RunConfig, data: str, start: str | None) -> str:
    """Of data, settings, code and starting weights: the same four would give the same result."""
    settings = config.model_dump(mode="json", exclude={"retrain", "cluster", "tracking", "fanout"})
    return digest_of(
        {
            "data": data,
            "config": settings,
            "version": metadata.version("vitline"),
            "start": start,
        }
    )


def config_of(config: RunConfig, value: Round, state: State, directory: Path) -> RunConfig:
    """The settings of the round's run.

    Args:
        directory: from which the configuration's relative paths count.

    Raises:
        UserError: a shard's name that cannot be written as a pattern.
    """
    assert config.retrain is not None
    bad = next((shard.name for shard in value.shards if _SPECIAL & set(shard.name)), None)
    watch = watched(config, directory)
    if bad is not None or _SPECIAL & set(watch):
        raise UserError(f"braces or commas in {bad or watch}", "names without them", "rename it")
    name = str(config.pretrain.dataset)
    source = config.datasets[name]
    assert isinstance(source, WebdatasetSource)
    shards = "{" + ",".join(shard.name for shard in value.shards) + "}"
    uri = tracking_uri(config, directory)
    return config.model_copy(
        update={
            "name": value.run,
            "root": str((directory / state.runs).absolute()),
            "datasets": {
                **config.datasets,
                name: source.model_copy(update={"train": f"{watch}/{shards}"}),
            },
            "pretrain": config.pretrain.model_copy(update={"start": value.start or config.pretrain.start}),
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "retrain": None,
        }
    )


def watched(config: RunConfig, directory: Path) -> str:
    """Where shards appear: a URL, or a path that is seen from `directory`."""
    assert config.retrain is not None
    watch = config.retrain.data.watch
    return watch.rstrip("/") if is_remote(watch) else str(directory / watch)


def tracking_uri(config: RunConfig, directory: Path) -> str:
    """All rounds, and the registry, share the store that a plain run would use."""
    return config.tracking.uri or f"sqlite:///{(directory / config.root / 'mlflow.db').absolute()}"


def reuse(config: RunConfig, state: State, rounds: Sequence[Round], also: str | None = None) -> int:
    """Link what earlier rounds have done and this one needs too, as prepared test sets; how many jobs.

    Args:
        also: run of a round that has no verdict yet, and may be linked too.

    A job's digest is made of all that its result depends on, so the same digest is the same result.
    """
    run = state.run_dir(config.name)
    run.jobs.mkdir(parents=True, exist_ok=True)
    for link in run.jobs.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    planned = plan(all_jobs(config), lambda digest: run.job(digest).result.exists(), {})
    linked = 0
    for item in planned:
        if item.state == "done" or item.job.stage == compare.STAGE or run.job(item.digest).path.exists():
            continue
        for earlier in reversed(rounds):
            there = state.run_dir(earlier.run).job(item.digest)
            ended = earlier.phase in SEEN or earlier.run == also
            if earlier.run != config.name and ended and there.result.exists():
                run.job(item.digest).path.symlink_to(there.path.resolve())
                linked += 1
                break
    return linked
