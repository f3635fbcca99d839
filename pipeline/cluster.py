"""Ray's cluster for one driver: started here or joined by its address, and left as it was found.

Every environment variable of Ray that this project relies on is set in this file, before Ray is
imported, because Ray reads most of them once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipeline.errors import EnvironmentUnfit
from pipeline.rundir import RunDir

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Metrics agents and log forwarding would cost a core of a small machine; our ranks log to files.
    "RAY_enable_metrics_collection": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Else a thread that asks Ray something after its end starts a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # A cut host is noticed in 5 s; the defaults took 64 s (docs/architecture.md, faults).
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    # Else a process beyond one a CPU ends after a second without work, and the next of the small jobs that
    # share a device pays for a new one, with PyTorch. Short of memory Ray ends idle ones first.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

THIS_MACHINE = "this machine"
# Ray's own default of the time after which a process ends itself when the head does not answer.
_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_PATIENCE_S = 60.0
_END_S = 5.0
# For one small task on each node of a cluster that is joined; a node may have to start Python for it.
_REACH_S = 120.0


class Cluster(NamedTuple):
    """A cluster that a driver is connected to.

    Args:
        look: what each living node has, name → amount, busy or not; a node that is to be taken away counts
            as gone. Hangs or raises when the head is gone.
        name: for messages.
        patience_s: how long the head may fail to answer before the driver gives it up.
    """

    look: Callable[[], list[dict[str, float]]]
    name: str
    patience_s: float


@contextlib.contextmanager
def connect(run: RunDir, address: str | None) -> Iterator[Cluster]:
    """Ray for the time of a `with` block.

    Without an address a cluster of this machine is started, with a token of its own in the run's
    directory that nobody else can read, and ended with the block. With one, that cluster is joined.

    Raises:
        EnvironmentUnfit: the cluster does not start or answer, or refuses the token.
    """
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    address = address or os.environ.get("RAY_ADDRESS")
    patience_s = float(os.environ.get(_PATIENCE, _PATIENCE_S))
    # Ray would end this process without a word of ours; we give up before it does.
    given = {_PATIENCE: str(round(patience_s + 30))}
    options: dict[str, Any] = {"address": address}
    with contextlib.ExitStack() as stack:
        if address is None:
            given |= _own_token(run.launch / "ray_token")
            options = {
                "include_dashboard": False,
                "_temp_dir": stack.enter_context(_temporary()),
                "object_store_memory": 100 * 2**20,
            }
        name = address or THIS_MACHINE
        stack.enter_context(_environment(given))
        stack.enter_context(_session(name, **options))
        # The environment is set now, and Ray imported.
        import ray

        from pipeline.preemption import leaving_nodes

        def staying() -> list[dict[str, float]]:
            leaving = leaving_nodes()
            alive = (node for node in ray.nodes() if node["Alive"])
            return [dict(node["Resources"]) for node in alive if node["NodeID"] not in leaving]

        yield Cluster(staying, name, patience_s)


@contextlib.contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """Variables for the time of a `with` block; the next cluster of this process has others."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _session(name: str, **options: Any) -> Iterator[None]:
    """Ray, and no process of it left that this one started."""
    before = set(psutil.Process().children(recursive=True))
    # Only now: importing Ray reads the environment.
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    # It remembers the token of the last cluster that this process was connected to.
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        try:
            ray.init(configure_logging=False, log_to_driver=False, **options)
        except Exception as error:  # Ray's own for processes that do not come up is a plain Exception
            raise _no_cluster(name, error) from error
        yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        _end(started)


def _no_cluster(name: str, error: Exception) -> EnvironmentUnfit:
    found = f"Ray at {name} did not start or answer: {error}"
    if name == THIS_MACHINE:
        return EnvironmentUnfit(
            found,
            "Ray's processes within half a minute",
            "free processors and memory of this machine, where they start too slowly, then run again",
        )
    return EnvironmentUnfit(
        found,
        "a cluster that answers and accepts this token",
        "check the address, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; or leave --address out",
    )


def check_reach(name: str) -> None:
    """Have every node of the cluster answer this process, which is connected to it. One that cannot reach its
    driver would take jobs and never say more.

    Raises:
        EnvironmentUnfit: a living node did not answer in `_REACH_S`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.preemption import leaving_nodes

    ask = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked, leaving = {}, leaving_nodes()  # those take no task any more
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in leaving:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=there).remote()] = str(node["NodeManagerAddress"])
    # A task whose node dies ends too, so what is left over is alive and silent.
    silent = asked and ray.wait(list(asked), num_returns=len(asked), timeout=_REACH_S)[1]
    if silent:
        places = ", ".join(sorted(asked[task] for task in silent))
        own = ray.util.get_node_ip_address()
        raise EnvironmentUnfit(
            f"{len(silent)} of {len(asked)} nodes of {name} did not answer in {_REACH_S:.0f} s: {places}",
            f"nodes that reach the driver's address, {own}, on any port",
            "open the network between them, or start the driver inside the cluster: vitline launch ray",
        )


def _answer() -> None:
    """The task of `check_reach`: that it ends is the answer."""


@contextlib.contextmanager
def _temporary() -> Iterator[str]:
    # Sockets of Unix have short names, so not inside the run's directory.
    path = tempfile.mkdtemp(prefix="vitline-ray-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _end(processes: set[psutil.Process]) -> None:
    """Ray's own processes end with it; now and then an actor's does not (a controller of Ray Train was
    found alive ten minutes after its cluster)."""
    _, alive = psutil.wait_procs(list(processes), timeout=_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _own_token(path: Path) -> dict[str, str]:
    """Variables that name a new token. Left alone, Ray writes one for all clusters of a user, readable by
    everybody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path.resolve())}
