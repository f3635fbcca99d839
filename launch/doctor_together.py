"""Judgements over what the nodes found out together, and over what the driver sees: clocks, storage, ports,
all-reduce, the size of the gang, MLflow, and who can reach Ray. See doctor_checks.py."""

from __future__ import annotations

import base64
import os
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote, urlsplit

from launch.doctor_checks import Check, Level, node_of, passed, verdict
from pipeline.config import GangSettings, TrackingSettings

_CLOCK_WARN_S, _CLOCK_FAIL_S = 1.0, 30.0
_SLOW_PAIR = 0.8
_PROBE_S = 5.0


def gang_fits(slots: Mapping[str, int], gang: GangSettings) -> Check:
    """`slots`: how many ranks each alive node can hold."""
    room, least = sum(slots.values()), gang.min_workers or gang.workers
    each = f"{gang.cpus_per_worker:g} CPU" + (
        f" and {gang.gpus_per_worker:g} GPU" if gang.gpus_per_worker else ""
    )
    return verdict(
        "gang size",
        "fail",
        [f"{len(slots)} nodes hold {room} ranks of {each}"] if room < least else [],
        f"{gang.workers} ranks, room for {room} on {len(slots)} nodes",
        f"room for {least} ranks",
        f"add nodes, or set pretrain.gang.workers to {room} or fewer",
    )


def answered(expected: Sequence[str], silent: Sequence[str], seconds: float) -> Check:
    return verdict(
        "nodes",
        "fail",
        [f"{node} did not answer in {seconds:.0f} s" for node in silent],
        f"{len(expected)} answered",
        "every alive node runs a small task",
        "look at raylet.err on these nodes, or leave them out",
        [node_of(node.split(" (")[0]) for node in silent],
    )


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Check:
    """`offsets`: node → (seconds ahead of the driver, half the round trip)."""
    # What the round trip may hide is no fault of the clock.
    sure = {node: max(0.0, abs(offset) - half) for node, (offset, half) in offsets.items()}
    off = {node: offsets[node] for node, seconds in sure.items() if seconds > _CLOCK_WARN_S}
    level: Level = "fail" if any(sure[node] > _CLOCK_FAIL_S for node in off) else "warn"
    worst = max(sure.values(), default=0.0)
    return verdict(
        "clocks",
        level,
        [f"{node} is {offset:+.1f} s (± {half:.1f}) off" for node, (offset, half) in off.items()],
        f"within {max(worst, 0.01):.2f} s of the driver's",
        f"within {_CLOCK_WARN_S:g} s: leases, TLS and signed requests depend on it",
        "start chrony or systemd-timesyncd on these nodes",
        [node for node in off if sure[node] > _CLOCK_FAIL_S],
    )


def storage(written: Mapping[str, str], read: Mapping[str, Mapping[str, str]]) -> Check:
    """`written`: node → content; `read`: reader → writer → what the reader saw."""
    mute = [node for node, text in written.items() if text.startswith("error")]
    faults = [f"{node} cannot write: {written[node]}" for node in mute]
    apart = []
    for reader, seen in read.items():
        for writer, text in seen.items():
            if writer not in mute and text != written[writer]:
                why = text if text.startswith("error") else "other content"
                faults.append(f"{reader} does not see what {writer} wrote ({why})")
                apart.append((reader, writer))
    return verdict(
        "shared storage",
        "fail",
        faults,
        f"each of {len(written)} nodes reads what each wrote",
        "one directory for the run that all nodes write and read",
        "set root to a file system that all nodes mount at the same path",
        [*map(node_of, mute), *cut_off(apart, len(written))],
    )


def cut_off(pairs: Sequence[tuple[str, str]], nodes: int) -> list[str]:
    """Nodes that do not find most others, by the pairs that went wrong: of two nodes nobody can say which."""
    faults = Counter(node_of(place) for pair in pairs for place in pair)
    return [node for node, count in faults.items() if count > nodes - 1]


def reachable(pairs: Mapping[tuple[str, str], str]) -> list[Check]:
    """`pairs`: (from, to) → fault, empty when it went well. A name that does not resolve is a warning."""
    names = [f"{here}: {text}" for (here, _), text in pairs.items() if "does not resolve" in text]
    nodes = len({place for pair in pairs for place in pair})
    ports = [
        f"{here} → {there}: {text}"
        for (here, there), text in pairs.items()
        if text and "does not resolve" not in text
    ]
    return [
        verdict(
            "ports",
            "fail",
            ports,
            f"{len(pairs)} pairs connect",
            "every node connects to every other on any high port",
            "open the ports between the nodes; set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
            cut_off([pair for pair, text in pairs.items() if text and "does not resolve" not in text], nodes),
        ),
        verdict(
            "names",
            "warn",
            names,
            "all resolve",
            "host names that resolve on all nodes",
            "add them to DNS or to /etc/hosts",
        ),
    ]


def all_reduce(answers: Mapping[str, Mapping[str, Any]]) -> Check:
    """`answers`: rank's place → what Member.all_reduce returned."""
    name = "all-reduce"
    faults = [f"{place}: {answer['error']}" for place, answer in answers.items() if answer["error"]]
    faults += [f"{place}: wrong sum" for place, answer in answers.items() if answer["right"] is False]
    if faults:
        do = "check the interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), firewalls and drivers"
        return Check(name, "fail", "; ".join(faults), "a sum over all ranks", do)
    places = list(answers)
    pairs = {
        place: answer["pairs"][left]
        for left, (place, answer) in enumerate(answers.items())
        if left in answer["pairs"]
    }
    middle = median(pairs.values()) if pairs else 0.0
    slow = [
        f"{place} – {places[(places.index(place) + 1) % len(places)]} at {rate / middle:.0%} of the median"
        for place, rate in pairs.items()
        if rate < _SLOW_PAIR * middle
    ]
    whole = min(answer["whole"] for answer in answers.values())
    return verdict(
        name,
        "warn",
        slow,
        f"{whole:,.3g} GB/s over {len(answers)} ranks",
        f"pairs at {_SLOW_PAIR:.0%} of their median {middle:,.3g} GB/s or more",
        "look at the cables and links of these; leave the node that is in both out",
    )


# ---------------------------------------------------------------- what the driver sees


def exposure(address: str, token: bool, allowed: bool) -> Check:
    """`address`: of Ray's control store, HOST:PORT; `token`: authentication is on."""
    host = address.rpartition(":")[0].strip("[]")
    local = host in ("localhost", "::1", "") or host.startswith("127.")
    if token or local:
        return passed("Ray's ports", "token authentication" if token else "this machine only")
    return Check(
        "Ray's ports",
        "warn" if allowed else "fail",
        f"Ray at {address} takes commands from everybody who reaches it",
        "token authentication, or a network that nobody else is in",
        "start all nodes with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN_PATH; else --allow-open-ray",
    )


def tracking(settings: TrackingSettings, root: Path) -> Check:
    """Whether MLflow's store can be reached from here. Training does not wait for it: a warning at most."""
    name = "MLflow"
    if not settings.enabled:
        return passed(name, "tracking is off")
    uri = settings.uri or f"sqlite:///{(root / 'mlflow.db').absolute()}"
    if uri.startswith("sqlite:///"):
        return _writable(name, Path(uri.removeprefix("sqlite:///")))
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _answers(name, uri.rstrip("/"), settings.experiment)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 5432), timeout=_PROBE_S).close()
    except OSError as error:
        return _warning(name, f"{parts.hostname} does not answer: {error}", "check host, port and network")
    return passed(name, f"{parts.hostname} takes connections; more is not checked")


def _writable(name: str, file: Path) -> Check:
    place = file
    while not place.exists() and place != place.parent:
        place = place.parent
    if os.access(place, os.W_OK):
        return passed(name, f"SQLite in {file.parent}")
    return _warning(name, f"{place} cannot be written", "set tracking.uri, or root, to a place that can")


def _answers(name: str, uri: str, experiment: str) -> Check:
    query = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
    request = urllib.request.Request(query, headers=_credentials())
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_S):
            return passed(name, f"{uri} knows the experiment {experiment}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return passed(name, f"{uri} answers; the experiment {experiment} will be made")
        hints = {401: "set MLFLOW_TRACKING_TOKEN, or user name and password", 403: "ask for permission"}
        if error.code == 403 and b"Host header" in error.read(1000):
            # MLflow's guard against other sites' pages; the option replaces its list, localhost too.
            hints[403] = f"start it with --allowed-hosts {urlsplit(uri).netloc},localhost,127.0.0.1"
        return _warning(name, f"{uri} answers with {error.code}", hints.get(error.code, "look at its log"))
    except (OSError, ValueError) as error:
        return _warning(name, f"{uri} does not answer: {error}", "start it, or check address and network")


def _credentials() -> dict[str, str]:
    """As MLflow's own client sends them."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _warning(name: str, found: str, do: str) -> Check:
    return Check(name, "warn", found, "a store that takes the run's record", f"{do}; the run goes on without")
