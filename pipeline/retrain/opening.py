"""Whether a round begins, and on what: the data that counts now, the champion's weights, a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import RetrainSettings, RunConfig, WebdatasetSource
from pipeline.config_io import digest_of
from pipeline.errors import UserError
from pipeline.retrain.freshness import Found, Freshness, decide, look
from pipeline.retrain.holds import why_held
from pipeline.retrain.rounds import key_of, watched
from pipeline.retrain.state import SEEN, Round, State
from pipeline.tracking_registry import CHAMPION, Registry


@dataclass(frozen=True)
class Scene:
    """What a tick works with.

    Args:
        directory: from which the configuration's relative paths count.
        clock: Unix seconds.
    """

    config: RunConfig
    state: State
    registry: Registry
    directory: Path
    clock: Callable[[], float]

    @property
    def settings(self) -> RetrainSettings:
        """The section retrain. Raises UserError where there is none."""
        return settings_of(self.config)


def settings_of(config: RunConfig) -> RetrainSettings:
    """The section retrain. Raises UserError where there is none."""
    if config.retrain is None:
        raise UserError(
            f"no section retrain in the configuration of {config.name}",
            "what is watched and what the gate asks",
            "add the section, as in configs/retrain/demo.yaml",
        )
    return config.retrain


def find_data(scene: Scene) -> Found:
    """The shards that count now."""
    source = scene.config.datasets[str(scene.config.pretrain.dataset)]
    assert isinstance(source, WebdatasetSource), "checked with the configuration"
    data = scene.settings.data
    here = data.model_copy(update={"watch": watched(scene.config, scene.directory)})
    return look(here, source.classes, scene.state, scene.clock())


def wanted(scene: Scene, force: str | None) -> tuple[Found, Freshness]:
    """The data that counts, and whether a round is due and may begin now.

    Args:
        force: why a run is wanted whatever the data and the holds say.
    """
    found, state = find_data(scene), scene.state
    fresh = decide(scene.settings.data, found, state.last_seen(), scene.clock())
    queued = state.queued()
    if force is not None and found.shards:
        return found, replace(fresh, due=True, reason=f"forced: {force}")
    if queued is not None and fresh.new_samples:
        fresh = replace(fresh, due=True, reason=f"queued: {queued}")
    held = why_held(scene.settings, state, scene.clock()) if fresh.due else None
    if held is not None:
        fresh = replace(fresh, due=False, reason=f"{held} (due: {fresh.reason})")
    return found, fresh


def open_round(scene: Scene, fence: int, force: str | None) -> Round | str:
    """A new round, written; or why there is none, in words.

    Args:
        force: why a run is wanted whatever the data and the holds say.
    """
    found, fresh = wanted(scene, force)
    state = scene.state
    if not fresh.due:
        return fresh.reason
    champion, start, sha256 = scene.registry.at(CHAMPION), None, None
    if champion is not None and scene.settings.start == "champion":
        place = state.path / "champion" / f"v{champion.number}"
        start = str(scene.registry.fetch_weights(champion, place).absolute())
        sha256 = champion.tags.get("weights")
    key = key_of(scene.config, found.digest, sha256)
    before = [item for item in state.rounds() if item.key == key]
    if before and before[-1].phase == "failed" and force is None:
        return (
            f"held: the same data and settings failed before ({before[-1].why}); --force REASON tries again"
        )
    if force is not None or any(item.phase in SEEN for item in before):
        # Wanted again though nothing has changed: a round of its own.
        key = digest_of([key, scene.clock()])
    return _write(scene, fence, key, found, fresh, champion.number if champion else None, start)


def _write(
    scene: Scene,
    fence: int,
    key: str,
    found: Found,
    fresh: Freshness,
    champion: str | None,
    start: str | None,
) -> Round:
    now = Round(
        key=key,
        run=f"{scene.config.name}-{key[:10]}",
        reason=fresh.reason,
        opened=scene.clock(),
        fence=fence,
        data=found.digest,
        shards=found.shards,
        new_samples=fresh.new_samples,
        champion=champion,
        start=start,
    )
    scene.state.write(now)
    scene.state.queue(None)
    return now
