"""Looks at every node before a gang of several nodes starts: what `vitline doctor` does, once a command.

At the moment at which the cluster is joined, if it holds the gang then; else when the gang is about to start,
because nodes may be late. A gang that one node holds is not worth the time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import admission
from pipeline.config import RunConfig
from pipeline.graph import Planned
from pipeline.rundir import RunDir


class Preflight:
    """`planned`: of the whole command; `quick`: without the rates of devices and network."""

    def __init__(self, config: RunConfig, run: RunDir, planned: Sequence[Planned], *, quick: bool) -> None:
        self._config, self._run, self._quick = config, run, quick
        gangs = [item for item in planned if item.state == "due" and item.job.workers > 1]
        self._gang = gangs[0] if gangs else None

    def when_connected(self, nodes: Sequence[admission.Resources]) -> None:
        """Raises EnvironmentUnfit, as below."""
        if self._gang is not None and admission.lacking([self._gang], nodes) is None:
            self.before_gang(self._gang, nodes)

    def before_gang(self, gang: Planned, nodes: Sequence[admission.Resources]) -> None:
        """Examine the cluster, the first time.

        Raises:
            EnvironmentUnfit: a check failed; RUN/launch/doctor.json says all.
        """
        if self._gang is None or admission.on_one_node(gang, nodes):
            return
        self._gang = None
        print(f"preflight: looks at {len(nodes)} nodes (--preflight off leaves it out)", file=sys.stderr)
        # Brings in PyTorch, which no other part of the driver needs.
        from launch.doctor import preflight

        report = preflight(self._config, self._run, quick=self._quick)
        print(f"preflight: {len(report.nodes)} nodes are fit, {report.seconds:.0f} s", file=sys.stderr)
