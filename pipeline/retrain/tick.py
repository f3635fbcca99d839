"""One tick of scheduled retraining: advances as far as it can without waiting, under a lease.

    (none) ─ data makes a run due ─► due ─► submitted ─► evaluated ─► judged ─┬─► promoted
                                      ▲        │ died, stopped: again  ▲       ├─► rejected, inconclusive
                                      └────────┴─ out of attempts ─►   │       └─► waiting (for approval)
                                                   failed              └► rejudging: the champion was judged
                                                                          on other images; a run mends that

Every step is written before the next begins and does no harm twice, so a tick may be killed anywhere: the
next one takes its lease over and goes on. Any number of missed ticks equals one. Only what holds the lease
and the newest fencing number moves an alias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipeline.config import RunConfig
from pipeline.errors import DataError, VitlineError
from pipeline.lease import Lease
from pipeline.retrain.freshness import decide
from pipeline.retrain.judging import READABLE, evidence, judge_round, weights_of
from pipeline.retrain.notify import notify, ping
from pipeline.retrain.occasions import of_model, of_round, why_stale
from pipeline.retrain.opening import Scene, find_data, open_round
from pipeline.retrain.promotion import promote, register
from pipeline.retrain.reevaluation import needed, prepare
from pipeline.retrain.rounds import config_of, reuse
from pipeline.retrain.state import SEEN, Phase, Round
from pipeline.rundir import RunDir, read_json, write_json

# Exit codes of a run after which another attempt can help; None: it died without a word.
_RETRY = (None, 1, 5, 7, 8, 75)
_PHASES: dict[str, Phase] = {"pass": "promoted", "fail": "rejected", "inconclusive": "inconclusive"}
# Of the command, by what a tick did.
EXIT_CODES: dict[str, int] = {
    "promoted": 0, "started": 0, "running": 3, "skipped": 3,
    "rejected": 6, "inconclusive": 6, "waiting": 6, "failed": 5,
}  # fmt: skip


@dataclass(frozen=True)
class RunState:
    """How a round's run stands: going on, or ended with an exit code (None: it died without one)."""

    running: bool
    exit_code: int | None = None


class Runner(Protocol):
    """Puts a run somewhere and finds it again; its record is kept as JSON."""

    def start(self, config: RunConfig, run: RunDir) -> dict[str, Any]: ...
    def look(self, run: RunDir, record: dict[str, Any]) -> RunState: ...
    def stop(self, run: RunDir, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What a tick did: one of EXIT_CODES, and a sentence."""

    decision: str
    why: str
    run: str | None = None


class Ticker:
    """Ticks for one configuration; `runner` does the runs."""

    def __init__(self, scene: Scene, runner: Runner) -> None:
        self.scene, self.runner = scene, runner
        self.settings, self.state, self.registry = scene.settings, scene.state, scene.registry
        self.fence = 0

    def tick(self, force: str | None = None) -> Answer:
        """Advance as far as possible.

        Args:
            force: why a run is wanted whatever the data says.

        Raises:
            Busy: another tick is at it.
            VitlineError: what a tick cannot go on from; the next one begins where this one stood.
        """
        died = self.state.left_behind()
        with Lease(self.state.lease):
            self.fence = self.state.next_fence()
            try:
                if died is not None:
                    self._announce("lease_taken", f"{died} died at a tick; this one goes on where it stood")
                answer = self._advance(force)
                stale = why_stale(self.state.history(), self.settings.data.max_age_days, self.scene.clock())
                if stale is not None:
                    self._announce("stale", stale)
            except VitlineError as error:
                self._note(Answer("error", error.found), self.state.current())
                raise
        if self.settings.ping_env is not None:
            ping(self.settings.ping_env)
        return answer

    # ---------------------------------------------------------------- the machine

    def _advance(self, force: str | None) -> Answer:
        self._tell_late()
        now = self._overlap(self.state.current())
        started = False
        while True:
            if now is None:
                opened = open_round(self.scene, self.fence, force)
                if isinstance(opened, str):
                    self._tell_of_model("skipped", opened)
                    return self._note(Answer("skipped", opened), None)
                now = opened
            if now.phase == "due":
                now, started = self._start(now), True
                self._tell(now, "started")
            elif now.phase == "submitted":
                seen = self._look(now)
                if seen.running:
                    return self._note(Answer("started" if started else "running", now.reason, now.run), now)
                now = self._after_run(now, seen.exit_code)
            elif now.phase == "evaluated":
                now = self._judge(now)
            elif now.phase == "rejudging":
                again = self._look_again(now)
                if again is None:
                    return self._note(Answer("started" if started else "running", now.reason, now.run), now)
                now = again
            elif now.phase == "judged":
                now = self._act(now)
            elif now.phase == "replaced":
                now = None
            else:
                return self._note(Answer(now.phase, now.why, now.run), now)

    def _look(self, now: Round) -> RunState:
        assert now.record is not None, "a run that was started has a record"
        return self.runner.look(self.state.run_dir(now.run), now.record)

    def _overlap(self, now: Round | None) -> Round | None:
        """A run goes on while data makes another due: by the policy it is left, or stopped for it."""
        if now is None or self.settings.overlap == "skip":
            return now
        if now.phase != "submitted" or not self._look(now).running:
            return now
        fresh = decide(self.settings.data, find_data(self.scene), now, self.scene.clock())
        if fresh.due:
            self.state.queue(fresh.reason)
            if self.settings.overlap == "replace":
                assert now.record is not None
                # It saves and ends in its own time; the first tick after that finds it ended.
                self.runner.stop(self.state.run_dir(now.run), now.record)
        return now

    def _start(self, now: Round) -> Round:
        config = config_of(self.scene.config, now, self.state, self.scene.directory)
        run = self.state.run_dir(now.run)
        reuse(config, self.state, self.state.rounds())
        record = self.runner.start(config, run)
        return self._write(now, phase="submitted", attempts=now.attempts + 1, record=record)

    def _after_run(self, now: Round, exit_code: int | None) -> Round:
        queued = self.state.queued()
        if exit_code == 0:
            return self._write(now, phase="evaluated")
        if exit_code == 75 and self.settings.overlap == "replace" and queued is not None:
            return self._end(now, "replaced", queued)
        said = "it died without a word"
        if exit_code is not None:
            text = (read_json(self.state.run_dir(now.run).result) or {}).get("message")
            said = f"exit code {exit_code}: {text or 'no message'}"
        if exit_code in _RETRY and now.attempts < self.settings.attempts:
            return self._write(now, phase="due", why=said)
        return self._end(now, "failed", said)

    def _judge(self, now: Round) -> Round:
        gate, model = self.settings.gate, self.registry.name
        try:
            if now.again is None and not now.again_why and needed(now, self.state, self.registry):
                return self._start_again(now)
            judgement = judge_round(now, self.state, self.registry, gate)
            run = self.state.run_dir(now.run)
            weights = weights_of(run)
        except DataError as error:
            return self._end(now, "failed", error.found)
        if judgement.guards.get(READABLE):
            # Nothing that a registry could hold.
            return self._end(now, "failed", judgement.why)
        found = evidence(now, judgement, gate, model, self.fence, self.scene.clock())
        write_json(self.state.gate(now.run), found)
        version = register(self.registry, now, run, weights, self.state.gate(now.run))
        return self._write(now, phase="judged", version=version.number, why=judgement.why)

    def _start_again(self, now: Round) -> Round:
        """Have the champion evaluated on the images that the challenger was judged on."""
        config = prepare(now, self.state, self.registry)
        if isinstance(config, str):
            return self._write(now, phase="evaluated", again_why=config)
        record = self.runner.start(config, self.state.run_dir(config.name))
        tries = now.again_attempts + 1
        return self._write(now, phase="rejudging", again_attempts=tries, record=record)

    def _look_again(self, now: Round) -> Round | None:
        """What became of that run; None: it goes on."""
        assert now.record is not None, "a run that was started has a record"
        seen = self.runner.look(self.state.run_dir(now.champion_run), now.record)
        if seen.running:
            return None
        if seen.exit_code == 0:
            return self._write(now, phase="evaluated", again=now.champion_run)
        if seen.exit_code in _RETRY and now.again_attempts < self.settings.attempts:
            return self._start_again(now)
        return self._write(now, phase="evaluated", again_why=f"its run ended with exit code {seen.exit_code}")

    def _act(self, now: Round) -> Round:
        gate = read_json(self.state.gate(now.run))
        assert gate is not None, "judged without evidence"
        phase = _PHASES[gate["verdict"]]
        if phase == "promoted" and self.settings.gate.approve == "manual":
            phase = "waiting"
        if phase == "promoted":
            assert now.version is not None, "judged without a version"
            self.state.check_fence(self.fence)
            promote(self.registry, now.version)
        return self._end(now, phase, str(gate["why"]))

    # ---------------------------------------------------------------- writing and telling

    def _write(self, now: Round, **changes: Any) -> Round:
        self.state.check_fence(self.fence)
        now = replace(now, **changes, fence=self.fence)
        self.state.write(now)
        return now

    def _end(self, now: Round, phase: Phase, why: str) -> Round:
        now = self._write(now, phase=phase, why=why, ended=self.scene.clock())
        if phase == "replaced":
            return now
        self._tell(now, phase)
        return self._write(now, told=phase)

    def _tell_late(self) -> None:
        """For a tick that died between its decision and the message about it."""
        for now in self.state.rounds()[-1:]:
            if now.phase in (*SEEN, "failed") and not now.told:
                self._tell(now, now.phase)
                self._write(now, told=now.phase)

    def _tell(self, now: Round, occasion: str) -> None:
        notify(self.settings.notify, occasion, of_round(self.registry.name, now, occasion, self.state))

    def _tell_of_model(self, occasion: str, why: str) -> None:
        notify(
            self.settings.notify, occasion, of_model(self.registry.name, occasion, why, self.scene.clock())
        )

    def _announce(self, occasion: str, why: str) -> None:
        """Something beside the rounds: noted in the ledger, and told."""
        self._note(Answer(occasion, why), None)
        self._tell_of_model(occasion, why)

    def _note(self, answer: Answer, now: Round | None) -> Answer:
        event: dict[str, Any] = {
            "event": "tick",
            "time": self.scene.clock(),
            "fence": self.fence,
            "decision": answer.decision,
            "why": answer.why,
        }
        if now is not None:
            event |= {"run": now.run, "key": now.key, "data": now.data, "version": now.version}
        # A round that is waited for is looked at often; that it still runs is said once.
        before = (self.state.history() or [{}])[-1]
        if (answer.decision, answer.run) != (before.get("decision"), before.get("run")) or now is None:
            self.state.note(event)
        return answer
