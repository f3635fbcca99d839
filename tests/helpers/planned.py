"""Planned jobs for tests of the scheduler, with just what it looks at."""

from __future__ import annotations

from pipeline.graph import Job, Planned


def item(
    name: str,
    *,
    cpus: float = 1,
    gpus: float = 0,
    workers: int = 0,
    sizes: tuple[int, ...] = (),
    cost: float = 0,
    needs: str = "",
) -> Planned:
    """`name` begins with the stage, and is the digest, too; `needs` are names with spaces between."""
    job = Job(
        name=name,
        stage=name.split("/")[0],
        version=1,
        slice={},
        identity={},
        inputs={need: need for need in needs.split()},
        cpus=cpus,
        gpus=gpus,
        workers=workers,
        sizes=sizes or ((workers,) if workers else ()),
        cost=cost,
    )
    return Planned(job=job, digest=name, inputs=dict(job.inputs), state="due", reason="new")
