"""What the cluster's nodes have, asked for beside the driver's own work; and whether anybody answers.

    thread:  look ──► snapshot ──► wait a second ──► look …       a look may hang: the head is gone
    driver:  nodes() the newest snapshot                          check() raises once none came for long

The driver must not ask itself: with Ray's head gone the question hangs, and after a while Ray ends the
process that asked, with no word of ours and an exit code that says nothing. No Ray is imported here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from pipeline.admission import Resources
from pipeline.errors import ClusterLost

log = logging.getLogger(__name__)


class NodeWatch:
    """Looks every `interval_s` while its `with` block lasts.

    Args:
        look: what each living node has; may hang or raise when the cluster does not answer.
        name: of the cluster, for the message.
        patience_s: the cluster is lost when no look has succeeded for this long.
    """

    def __init__(
        self, look: Callable[[], Sequence[Resources]], name: str, patience_s: float, interval_s: float = 1.0
    ) -> None:
        self._look, self._name = look, name
        self._patience_s, self._interval_s = patience_s, interval_s
        self._nodes: list[Resources] = []
        self._began = float("-inf")  # when the look began that found `_nodes`
        self._answered = time.monotonic()
        self._asked = 0.0  # what is older is no answer any more
        self._wake = threading.Event()
        self._ended = False
        self._new = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)

    def __enter__(self) -> NodeWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._wake.set()
        # It may hang in a look; as a daemon it keeps nobody alive.
        self._thread.join(0 if isinstance(error, ClusterLost) else 2 * self._interval_s)

    def nodes(self) -> list[Resources]:
        """The newest answer; after `renew` one that was asked for later.

        Raises:
            ClusterLost: no answer came.
        """
        with self._new:
            while self._began < self._asked:
                self.check()
                self._new.wait(0.5)
            return self._nodes

    def renew(self) -> None:
        """The cluster has changed: what is known by now must not be used."""
        self._asked = time.monotonic()
        self._wake.set()

    def check(self) -> None:
        """Raises ClusterLost once no look has succeeded for `patience_s`."""
        silent_s = time.monotonic() - self._answered
        if silent_s > self._patience_s:
            raise ClusterLost(
                f"Ray's head of {self._name} has not answered for {silent_s:.0f} s",
                "a cluster that lives until the run is done",
                "start the cluster again if it is gone, then the same command: the run goes on from its last"
                " checkpoints",
            )

    def _watch(self) -> None:
        while not self._ended:
            began = time.monotonic()
            self._wake.clear()
            try:
                nodes = self._look()
            except Exception:
                # Ray has many errors for a head that is gone. It may be back at the next look.
                log.debug("no answer about the nodes of %s", self._name, exc_info=True)
            else:
                with self._new:
                    self._nodes, self._began, self._answered = list(nodes), began, time.monotonic()
                    self._new.notify_all()
            self._wake.wait(self._interval_s)
