"""One attempt at a job: where it works, which rank this is, and the ways to speak to the outside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Busy
from pipeline.rundir import JobDir
from pipeline.train.stopping import StopSwitch
from pipeline.train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    run: Path
    job: JobDir
    digest: str
    world: World
    generation: int
    report: Callable[[Mapping[str, Any]], None]  # does nothing on ranks other than 0
    stop: StopSwitch

    def check_fence(self) -> None:
        """Raise Busy when a newer attempt has begun: this one may not complete anything any more."""
        newest = self.job.read_generation()
        if newest > self.generation:
            raise Busy(
                f"attempt {newest} of job {self.digest} has begun, this is attempt {self.generation}",
                "one attempt at a time",
                "nothing; the newer attempt goes on from the last complete checkpoint",
            )

    def warn(self, message: str) -> None:
        """Say something aloud, once for all ranks."""
        log.warning(message)
        self.report({"event": "warning", "message": message})

    def relative(self, path: Path) -> str:
        """A path inside the run directory, as results name it."""
        return path.relative_to(self.run).as_posix()


class _RankLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a full disk would drown the one message that names it in tracebacks."""


@contextmanager
def rank_log(path: Path, rank: int) -> Iterator[None]:
    """While inside, everything that our packages log goes to `path` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _RankLog(path)
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("pipeline", "model")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
