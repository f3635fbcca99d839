"""What is done, what is due, and why: arithmetic over jobs, without Ray and without files.

    prepare/glyphs ─► pretrain ─┬─► choose/digits/pretrained/lr0.01 ─┐
    prepare/digits ─────────────┼─► choose/digits/pretrained/lr0.03 ─┼─► finetune/digits/pretrained/seed0
                                └─► …                                │      └─► evaluate/… ─► compare
                (from scratch: the same without pretrain) ───────────┘

A job's digest is made of its name and its stage's version, the settings it reads and the digests of its
inputs. So a changed setting gives new digests to its job and to all that follow, and to nothing else.
A job is done when its directory holds a result; nothing else is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config_io import digest_of, flatten
from pipeline.errors import UserError, VitlineError


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work that is done once.

    Args:
        name: unique in the run, `stage/…`.
        stage: prepare, pretrain, choose, finetune, evaluate or compare.
        version: of the stage's code; raised when its results would differ.
        slice: the settings it reads; plain JSON.
        identity: the same without what stands at its default, so that a setting which a newer version
            adds does not make old results due; the digest is made of it.
        inputs: role → name of the job that makes it.
        cpus, gpus: what one worker needs.
        workers: ranks; more than 0 makes it a gang.
        sizes: of a gang, every number of ranks that it may have; `workers` is the largest.
        cost: rough length, to run the longest first; any unit, compared within a stage. Set when its
            inputs are done (pipeline/stages/cost.py), as the length of a dataset is known only then.
    """

    name: str
    stage: str
    version: int
    slice: Mapping[str, Any]
    identity: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1
    gpus: float = 0
    workers: int = 0
    sizes: tuple[int, ...] = ()
    cost: float = 0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job with its identity, and whether it is due."""

    job: Job
    digest: str
    inputs: Mapping[str, str]  # role → digest
    state: Literal["done", "due"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt of a job ended: without error it is done.

    Args:
        error: the whole text, for logs.
        fault: the same as one of our exceptions, where it is one.
        retry: whether another attempt can help.
        stopped: it ended early because it was asked to.
        preempted: it failed because its node was taken away, as announced; that is no failure of the job.
        progressed: it failed, but completed a checkpoint before; its failures are counted anew.
        note: what is worth a word of a job that is done.
    """

    digest: str
    error: str | None = None
    fault: VitlineError | None = None
    retry: bool = False
    stopped: bool = False
    preempted: bool = False
    progressed: bool = False
    note: str = ""


def plan(
    jobs: Sequence[Job],
    is_done: Callable[[str], bool],
    earlier: Mapping[str, Mapping[str, Any]],
) -> list[Planned]:
    """Identity and state of every job, in an order in which inputs come first.

    Args:
        jobs: of one run, in any order.
        is_done: whether the job of a digest has a result.
        earlier: name → `{"slice", "inputs", "stage_version"}` of the newest job of that name that ran
            before, to say what changed.
    """
    planned: dict[str, Planned] = {}
    for job in _inputs_first(jobs):
        inputs = {role: planned[name].digest for role, name in sorted(job.inputs.items())}
        digest = digest_of(
            {"name": job.name, "version": job.version, "slice": dict(job.identity), "inputs": inputs}
        )
        redone = [name for name in job.inputs.values() if planned[name].state == "due"]
        done = is_done(digest)
        planned[job.name] = Planned(
            job=job,
            digest=digest,
            inputs=inputs,
            state="done" if done else "due",
            reason="unchanged" if done else _why(job, inputs, redone, earlier.get(job.name)),
        )
    return list(planned.values())


def _inputs_first(jobs: Sequence[Job]) -> list[Job]:
    by_name = {job.name: job for job in jobs}
    assert len(by_name) == len(jobs), "two jobs of one name"
    ordered: dict[str, Job] = {}

    def visit(job: Job) -> None:
        if job.name not in ordered:
            for name in job.inputs.values():
                visit(by_name[name])
            ordered[job.name] = job

    for job in jobs:
        visit(job)
    return list(ordered.values())


def _why(job: Job, inputs: Mapping[str, str], redone: Sequence[str], before: Mapping[str, Any] | None) -> str:
    if before is None:
        return "new"
    found = list(changes(before["slice"], job.slice))
    if found:
        return f"changed: {listed(found)}"
    if before["stage_version"] != job.version:
        return f"stage version {before['stage_version']} → {job.version}"
    if dict(before["inputs"]) != dict(inputs):
        return "inputs changed" + (f": {redone[0]}" if redone else "")
    return "not finished"


def listed(found: Sequence[str]) -> str:
    """The first two, and how many more."""
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`setting old → new` of all settings that differ."""
    old, new = dict(flatten(before)), dict(flatten(now))
    return [
        f"{key} {_short(old.get(key))} → {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if _plain(old.get(key)) != _plain(new.get(key))
    ]


def _plain(value: object) -> object:
    """Tuples as lists, as they come back from JSON."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a plan a command is for; None: no bound.

    Args:
        first, last: stages; what is due before or after them is left as it is.
        force: stages whose jobs are done anew, with all that follows from them.
    """

    first: str | None = None
    last: str | None = None
    force: frozenset[str] = frozenset()


def select(planned: Sequence[Planned], selection: Selection, stages: Sequence[str]) -> list[Planned]:
    """The jobs that a command looks after, of `planned` (inputs first); `stages` in their order.

    Raises:
        UserError: a stage that does not exist, or a due job whose input is due and left out.
    """
    named = {selection.first, selection.last, *selection.force} - {None}
    if unknown := sorted(str(stage) for stage in named if stage not in stages):
        raise UserError(f"the stage {unknown[0]!r}", f"one of {', '.join(stages)}", "name one of these")
    low = stages.index(selection.first) if selection.first else 0
    high = stages.index(selection.last) if selection.last else len(stages) - 1
    chosen: dict[str, Planned] = {}
    left_out = set()
    for item in _forced(planned, selection.force):
        inside = low <= stages.index(item.job.stage) <= high
        if item.state == "due" and not inside:
            left_out.add(item.job.name)
            continue
        chosen[item.job.name] = item
        missing = [name for name in item.job.inputs.values() if name in left_out]
        if item.state == "due" and missing:
            raise UserError(
                f"{item.job.name} is due and needs {missing[0]}, which is due too and left out",
                "inputs that are done, or part of this command",
                f"begin with {missing[0].split('/')[0]} or earlier",
            )
    return list(chosen.values())


def _forced(planned: Sequence[Planned], force: frozenset[str]) -> Iterator[Planned]:
    redone: set[str] = set()
    for item in planned:
        again = item.job.stage in force or any(name in redone for name in item.job.inputs.values())
        if again and item.state == "done":
            why = "forced" if item.job.stage in force else "follows what is forced"
            redone.add(item.job.name)
            yield replace(item, state="due", reason=why)
        else:
            yield item
