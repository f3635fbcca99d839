"""The champion changes: a challenger is registered, promoted, taken back, blocked.

`previous` is set before `champion`, so that whatever is killed in between leaves a champion and a way back.
Doing any of this twice changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.retrain.state import Round
from pipeline.rundir import RunDir, read_json
from pipeline.tracking_registry import CHALLENGER, CHAMPION, PREVIOUS, Registry, Version


def register(registry: Registry, now: Round, run: RunDir, weights: Path, gate: Path) -> Version:
    """The round's model as a version with its evidence, and as `challenger`."""
    evidence = read_json(gate)
    assert evidence is not None, "registered after the gate"
    deltas = {item["dataset"]: item["delta_pp"] for item in evidence["datasets"]}
    shown = ", ".join(f"{name} {delta:+.2f}" for name, delta in deltas.items() if delta is not None)
    tags = {
        "run": now.run,
        "gate": evidence["verdict"],
        "data": now.data,
        "fence": str(now.fence),
        "champion_version": now.champion or "none",
        "delta_pp": shown or "none",
        "samples": str(now.samples),
    }
    note = f"{evidence['verdict']}: {evidence['why']}\n{now.reason}; {now.samples} samples"
    version = registry.register(now.key, run, weights, tags, note)
    registry.upload(version, gate)
    registry.move(CHALLENGER, version.number)
    return version


def promote(registry: Registry, number: str) -> None:
    """Make a version the champion.

    Raises:
        UserError: it was blocked by a rollback.
    """
    version = registry.version(number)
    if version.blocked is not None:
        raise UserError(
            f"version {number} of {registry.name} was taken back: {version.blocked}",
            "a version that is not blocked",
            "promote another; or `vitline promote CONFIG --version N --override REASON`",
        )
    champion = registry.at(CHAMPION)
    if champion is not None and champion.number != number:
        registry.move(PREVIOUS, champion.number)
    registry.move(CHAMPION, number)


def promote_by_hand(registry: Registry, number: str | None, override: str | None) -> tuple[str, str]:
    """Promote the challenger, or the version `number`; returns the version and why it may be.

    Args:
        override: a reason, which a version needs that did not pass its gate or is blocked.

    Raises:
        UserError: it may not be promoted without a reason.
    """
    version = registry.at(CHALLENGER) if number is None else registry.version(number)
    if version is None:
        raise UserError(f"no challenger of {registry.name}", "a version", "run `vitline retrain` first")
    verdict = version.tags.get("gate", "not judged")
    if override is None and verdict != "pass":
        raise UserError(
            f"version {version.number} did not pass its gate: {verdict}",
            "a pass, or a reason",
            "add --override REASON if you know better; it is kept with the version",
        )
    if override is not None:
        registry.tag(version.number, override=override)
        registry.untag(version.number, "blocked")
    promote(registry, version.number)
    return version.number, override or "it passed its gate"


def roll_back(registry: Registry, to: str | None, reason: str) -> tuple[str, str]:
    """Put the champion back to `to`, or to the one before; returns (left, new champion).

    The version that is left is blocked: no gate promotes it again.

    Raises:
        UserError: there is nothing to go back from or to.
    """
    left = registry.at(CHAMPION)
    target = registry.at(PREVIOUS) if to is None else registry.version(to)
    if left is None or target is None or target.number == left.number:
        raise UserError(
            f"champion is {_name(left)}, to go back to is {_name(target)}",
            "a champion and another version",
            "name one with --to; `vitline retrain CONFIG --history` shows what there was",
        )
    if target.blocked is not None:
        raise UserError(
            f"version {target.number} was itself taken back: {target.blocked}",
            "a version that is not blocked",
            "name another with --to",
        )
    registry.tag(left.number, blocked=reason)
    registry.move(CHAMPION, target.number)
    return left.number, target.number


def _name(version: Version | None) -> str:
    return "none" if version is None else f"version {version.number}"
