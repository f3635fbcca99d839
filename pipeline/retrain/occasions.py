"""What is told to people and programs, on which occasion: the bodies of notifications, and when one is due.

started, failed, rejected, inconclusive, waiting, promoted    what became of a round
skipped       a tick that began none
lease_taken   a tick found that the one before it had died
stale         no model was promoted within twice max_age_days; said again after the same time
rolled_back   by hand (launch/retrain.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.events import Event
from pipeline.retrain.state import Round, State
from pipeline.rundir import read_json

_DAY_S = 86_400.0
# Noted in the ledger beside the decision of the same tick.
BESIDE = ("lease_taken", "stale")


def of_round(model: str, now: Round, occasion: str, state: State) -> dict[str, Any]:
    """What became of a round, with its evidence."""
    words = f"{model}: {occasion} ({now.why or now.reason})"
    if occasion == "waiting":
        words += f"; vitline promote CONFIG --version {now.version}"
    return {
        "summary": words,
        "model": model,
        "run": now.run,
        "version": now.version,
        "champion": now.champion,
        "why": now.why,
        "reason": now.reason,
        "samples": now.samples,
        "gate": read_json(state.gate(now.run)),
        "time": now.ended or now.opened,
    }


def of_model(model: str, occasion: str, why: str, time: float) -> dict[str, Any]:
    """What is no round's matter."""
    return {"summary": f"{model}: {occasion} ({why})", "model": model, "why": why, "time": time}


def why_stale(events: Sequence[Event], max_age_days: float | None, now: float) -> str | None:
    """Why the model counts as stale, in words; None: it does not, or that was said lately.

    Args:
        events: the ledger. now: Unix seconds.
    """
    if max_age_days is None:
        return None
    # Of a model that never was promoted the age counts from the first tick.
    known = [event["time"] for event in events if event["decision"] in ("promoted", "stale")]
    since = max(known) if known else min((event["time"] for event in events), default=now)
    if now - since <= 2 * max_age_days * _DAY_S:
        return None
    return f"nothing was promoted in {2 * max_age_days:g} days, twice max_age_days"
