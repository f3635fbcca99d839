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
    # A cut host is noticed in 5 s; the defaults took 64 s (docs/architecture.md, faults).
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


_END_S = 5.0


@contextlib.contextmanager
def connect(run: RunDir, address: str | None) -> Iterator[Callable[[], list[Mapping[str, float]]]]:
    """Ray for the time of a `with` block; yields a function that says what each living node has, name →
    amount, busy or not. A node that is to be taken away counts as gone.

    Without an address a cluster of this machine is started, with a token of its own in the run's
    directory that nobody else can read, and ended with the block. With one, that cluster is joined.

    Raises:
        EnvironmentUnfit: the cluster does not answer, or refuses the token.
    """
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    address = address or os.environ.get("RAY_ADDRESS")
    temporary: str | None = None
    if address is None:
        _own_token(run.launch / "ray_token")
        # Sockets of Unix have short names, so not inside the run's directory.
        temporary = tempfile.mkdtemp(prefix="vitline-ray-")
    before = set(psutil.Process().children(recursive=True))
    # Only now: importing Ray reads the environment.
    import ray

    try:
        if address is None:
            ray.init(
                include_dashboard=False,
                _temp_dir=temporary,
                configure_logging=False,
                log_to_driver=False,
                object_store_memory=100 * 2**20,
            )
        else:
            ray.init(address=address, configure_logging=False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentUnfit(
            f"Ray at {address or 'this machine'} did not start or answer: {error}",
            "a cluster that answers and accepts this token",
            "check the address, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; or leave --address out",
        ) from error
    # Imports Ray.
    from pipeline.preemption import leaving_nodes

    def staying() -> list[Mapping[str, float]]:
        leaving = leaving_nodes()
        return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]

    try:
        yield staying
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        if temporary is not None:
            _end(started)
            shutil.rmtree(temporary, ignore_errors=True)


def _end(processes: set[psutil.Process]) -> None:
    """Ray's own processes end with it; now and then an actor's does not (a controller of Ray Train was
    found alive ten minutes after its cluster)."""
    _, alive = psutil.wait_procs(list(processes), timeout=_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _own_token(path: Path) -> None:
    """Left alone, Ray writes one token for all clusters of a user, readable by everybody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path.resolve())
