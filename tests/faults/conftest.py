"""Hosts with addresses of their own on one machine: network namespaces on a bridge, Ray on each.

Each host has its own /tmp/ray, because Ray's files of several hosts in one folder collide.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = "vitline-br"
# What every `ray start` of ours sets: a host that is cut off is noticed in 5 s instead of 64 s.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """`count` hosts, 10.77.0.1 and on; the first holds Ray's head."""

    def __init__(self, count: int, directory: Path, cpus: int) -> None:
        self.count = count
        self.directory = directory
        self.cpus = cpus
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.commands: list[subprocess.Popen[bytes]] = []
        self.token = directory / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def __enter__(self) -> Hosts:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for host in range(self.count):
            name = f"vitline-h{host}"
            ip("netns", "add", name)
            ip("link", "add", f"vlh{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"vlh{host}", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        for host in range(self.count):
            self.start_ray(host)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.commands, *self.processes.values()]:
            process.terminate()
        for process in [*self.commands, *self.processes.values()]:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for host in range(self.count):
            subprocess.run(["ip", "netns", "del", f"vitline-h{host}"], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)

    def on(self, host: int, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `command` on a host, with the host's own /tmp/ray."""
        own = self.directory / f"ray-{host}"
        own.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        script = 'mount --bind "$0" /tmp/ray && exec "$@"'
        with log.open("wb") as file:
            return subprocess.Popen(
                [
                    *("ip", "netns", "exec", f"vitline-h{host}", "unshare", "-m", "--propagation", "private"),
                    *("sh", "-c", script, str(own), *command),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    **os.environ,
                    **HEALTH,
                    "HOME": str(self.directory),
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN_PATH": str(self.token),
                    "GLOO_SOCKET_IFNAME": "eth0",
                    "PYTHONPATH": str(ROOT),
                },
            )

    def start_ray(self, host: int) -> None:
        role = (
            ["--head", "--port=6379", "--include-dashboard=false"]
            if host == 0
            else [f"--address={self.address(0)}:6379"]
        )
        self.processes[host] = self.on(
            host,
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--node-ip-address={self.address(host)}",
            f"--num-cpus={self.cpus}",
            "--object-store-memory=100000000",
            *role,
            log=self.directory / f"ray-{host}.log",
        )
        if host == 0:
            time.sleep(8)

    def cut(self, host: int) -> None:
        """Take the host off the network; its processes go on."""
        ip("link", "set", f"vlh{host}", "down")

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The driver, on the head's host."""
        log = self.directory / f"driver-{len(self.commands)}.log"
        self.commands.append(self.on(0, sys.executable, "-m", "launch", "run", *arguments, log=log))
        return self.commands[-1]

    def output(self, number: int = 0) -> str:
        return (self.directory / f"driver-{number}.log").read_text()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, iproute2 and util-linux, to make hosts of network namespaces")
    made: list[Hosts] = []

    def make(count: int, cpus: int = 1) -> Hosts:
        directory = tmp_path / "hosts"
        directory.mkdir()
        made.append(Hosts(count, directory, cpus).__enter__())
        return made[-1]

    yield make
    for cluster in made:
        cluster.__exit__()
