"""Every fault that vitline foresees, as one tree of exceptions.

    VitlineError            exit  retry helps
    ├── UserError              2  no    a setting, a path or a name that the user must change
    │   └── ConfigError        2  no    the same, found in a configuration file
    ├── NothingToDo            3  no
    ├── DataError              4  no    images, shards or a manifest that cannot be used
    │   └── ReadError          4  yes   bytes that did not arrive; they may at the next try
    ├── TrainingError          5  no    the training itself went wrong (not finite, self-test)
    ├── JobsFailed             5  yes   some jobs failed, the others are done
    ├── EnvironmentUnfit       7  yes   a tool, a cluster or a store is not fit for the run
    ├── Busy                   8  yes   another driver holds the lease
    └── StopRequested         75  yes   stopped on request; the same command continues
        └── ClusterLost       75  yes   Ray's head is gone; the same command continues

A message has three parts: what was found, what was expected, what to do. The command line prints
these and no traceback. Anything else that escapes is our own bug: exit code 1, with traceback.
"""

from __future__ import annotations

from typing import ClassVar


class VitlineError(Exception):
    """A foreseen fault.

    Args:
        found: what is there now, with the values in it.
        expected: what would be right.
        do: the next thing for the user to do.
    """

    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(self, found: str, expected: str, do: str) -> None:
        # All three go to args, so that the exception survives pickling between processes.
        super().__init__(found, expected, do)
        self.found = found
        self.expected = expected
        self.do = do

    def __str__(self) -> str:
        return f"found: {self.found}\nexpected: {self.expected}\ndo this: {self.do}"


class UserError(VitlineError):
    """Something that the user must change; the same command would fail again."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration file, or an override on the command line, that cannot be used."""


class NothingToDo(VitlineError):
    """All is done already; not a failure, but a scheduler may want to know."""

    exit_code = 3


class DataError(VitlineError):
    """A dataset that cannot be used as it is."""

    exit_code = 4


class ReadError(DataError):
    """Bytes that could not be read this time."""

    retry = True


class TrainingError(VitlineError):
    """A training that must not go on: a loss that is not finite, a self-test that failed."""

    exit_code = 5


class JobsFailed(VitlineError):
    """Some jobs of the run failed; the others are done."""

    exit_code = 5
    retry = True


class EnvironmentUnfit(VitlineError):
    """A missing tool, a cluster too small, a store that does not answer."""

    exit_code = 7
    retry = True


class Busy(VitlineError):
    """Another driver holds the run."""

    exit_code = 8
    retry = True


class StopRequested(VitlineError):
    """Stopped by Ctrl-C, a signal or a preemption, with a checkpoint; run again to continue."""

    exit_code = 75
    retry = True


class ClusterLost(StopRequested):
    """Ray's head does not answer any more; what was saved is there for the next start."""
