"""Hosts with names and addresses of their own on one machine: network namespaces on a bridge, Ray on each.

Each host has its own /tmp/ray, because Ray's files of several hosts in one folder collide; a host name of its
own, because a driver's lease tells hosts apart by it; and processes of its own, because a Ray driver looks
for its host's raylet among all that it sees. (With one list for all hosts, a driver that was not beside the
head took the head's address for its own, and its ranks never reached it.) The disk is what they share.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = "vitline-br"
# What every `ray start` of ours sets: a host that is cut off is noticed in 5 s instead of 64 s.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_enable_metrics_collection": "0",
    # Every host would count the memory of the whole machine, with all else that runs on it, as its own.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
RAY = (sys.executable, "-m", "ray.scripts.scripts")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def remove_networks(count: int) -> None:
    """The links by name too: those of a namespace whose last process is just ending live a little longer."""
    for host in range(count):
        subprocess.run(["ip", "link", "del", f"vlh{host}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", f"vitline-h{host}"], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


class HostProcess(subprocess.Popen[bytes]):
    """A process inside a host, started from outside.

    A signal is for it, not for the `nsenter` that waits for it (and ends as it does).
    """

    def send_signal(self, sig: int) -> None:
        deadline = time.monotonic() + 10
        while self.poll() is None and time.monotonic() < deadline:
            try:
                if inside := psutil.Process(self.pid).children():
                    inside[0].send_signal(sig)
                    return
            except psutil.NoSuchProcess:
                continue
            time.sleep(0.01)


class Hosts:
    """`count` hosts, 10.77.0.1 and on; Ray's head is on the first, and on the first `started` Ray runs."""

    def __init__(self, count: int, directory: Path, cpus: int, started: int | None = None) -> None:
        self.count = count
        self.directory = directory
        self.cpus = cpus
        self.started = count if started is None else started
        self.ray: dict[int, HostProcess] = {}
        self.drivers: list[HostProcess] = []
        self._boots: dict[int, subprocess.Popen[bytes]] = {}  # host → the parent of its first process
        self.token = directory / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    @property
    def cluster(self) -> str:
        """Where a driver finds Ray."""
        return f"{self.address(0)}:6379"

    def __enter__(self) -> Hosts:
        remove_networks(self.count)  # of a test that was killed
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
            self._boot(host)
        for host in range(self.started):
            self.start_ray(host)
        return self

    def __exit__(self, *_: object) -> None:
        for boot in self._boots.values():
            # Its first process: the kernel ends all others of the host with it.
            for first in psutil.Process(boot.pid).children():
                first.kill()
        for process in [*self.drivers, *self.ray.values(), *self._boots.values()]:
            process.wait(20)
        remove_networks(self.count)

    # ---------------------------------------------------------------- processes

    def _boot(self, host: int) -> None:
        """The host's first process, which does nothing and holds its name, processes and /tmp/ray."""
        own = self.directory / f"ray-{host}"
        own.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        # Orphans become its children; as it ignores their end, none is left as a zombie.
        script = 'hostname "$0"; mount --bind "$1" /tmp/ray; trap "" CHLD; echo up; exec sleep infinity'
        log = self.directory / f"boot-{host}.log"
        with log.open("wb") as file:
            self._boots[host] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", f"vitline-h{host}"),
                    *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("--propagation", "private", "sh", "-e", "-c", script, f"h{host}", str(own)),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        while log.read_text() != "up\n":
            assert self._boots[host].poll() is None, log.read_text()
            time.sleep(0.05)

    def on(self, host: int, *command: str, log: Path) -> HostProcess:
        """Start `command` on a host."""
        first = psutil.Process(self._boots[host].pid).children()[0].pid
        inside = ("nsenter", f"--target={first}", "--net", "--mount", "--uts", "--pid", f"--wd={ROOT}")
        with log.open("wb") as file:
            return HostProcess(
                [*inside, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **HEALTH,
                    "HOME": str(self.directory),
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN_PATH": str(self.token),
                    "GLOO_SOCKET_IFNAME": "eth0",
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "NO_COLOR": "1",
                },
            )

    def processes(self, host: int) -> list[psutil.Process]:
        """All that was started on the host, and their descendants; those that wait for them outside too."""
        boot = psutil.Process(self._boots[host].pid)
        first = boot.children()[0]
        found: list[psutil.Process] = []
        for pid in ip("netns", "pids", f"vitline-h{host}").split():
            try:
                if int(pid) not in (boot.pid, first.pid):
                    found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def titled(self, host: int, title: str) -> list[psutil.Process]:
        """Processes of a host with `title` in their command line; Ray names workers after what they run."""
        found = []
        for process in self.processes(host):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_all(self, host: int) -> None:
        """As if its power had failed."""
        for _ in range(3):
            for process in self.processes(host):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)

    # ---------------------------------------------------------------- Ray

    def start_ray(self, host: int) -> None:
        """`ray start`; of the head it waits until it answers."""
        role = ["--head", "--port=6379", "--include-dashboard=false"] if host == 0 else []
        role = role or [f"--address={self.cluster}"]
        log = self.directory / f"ray-{host}-{time.time_ns()}.log"
        self.ray[host] = self.on(
            host,
            *(*RAY, "start", "--block", f"--node-ip-address={self.address(host)}"),
            *(f"--num-cpus={self.cpus}", "--object-store-memory=100000000", *role),
            log=log,
        )
        deadline = time.monotonic() + 300
        while host == 0 and "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert self.ray[0].poll() is None, log.read_text()
            time.sleep(0.2)

    def kill_ray(self, host: int) -> None:
        """All of Ray on a host, workers too; other processes (a driver) go on."""
        for process in [*self.titled(host, "ray::"), *self.titled(host, "/ray/"), *self.titled(host, RAY[2])]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.ray[host].wait(20)

    def sigterm(self, host: int) -> None:
        """What a scheduler sends to `ray start` when it takes the host away."""
        self.ray[host].send_signal(signal.SIGTERM)

    def drain(self, host: int, deadline_s: int) -> None:
        """Ray's own notice, as an autoscaler gives it."""
        code = (
            "import sys, time, ray\n"
            "from ray.core.generated import autoscaler_pb2\n"
            "ray.init(address=sys.argv[1], log_to_driver=False)\n"
            "node = next(n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == sys.argv[2])\n"
            "reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION\n"
            "deadline = int((time.time() + float(sys.argv[3])) * 1000)\n"
            "gcs = ray._raylet.GcsClient(address=sys.argv[1])\n"
            "print(gcs.drain_node(node, reason, 'test', deadline))\n"
        )
        log = self.directory / f"drain-{time.time_ns()}.log"
        arguments = (self.cluster, self.address(host), str(deadline_s))
        process = self.on(0, sys.executable, "-c", code, *arguments, log=log)
        assert process.wait(60) == 0, log.read_text()
        assert "True" in log.read_text(), log.read_text()

    # ---------------------------------------------------------------- network, drivers

    def cut(self, host: int) -> None:
        """Take the host off the network; its processes go on."""
        ip("link", "set", f"vlh{host}", "down")

    def hide(self, host: int, other: int) -> None:
        """Take one way from the network: what `host` sends to `other` is lost, and no more."""
        ip("-n", f"vitline-h{host}", "route", "add", "blackhole", f"{self.address(other)}/32")

    def mend(self, host: int) -> None:
        ip("link", "set", f"vlh{host}", "up")

    def run(self, *arguments: str, host: int = 0) -> subprocess.Popen[bytes]:
        """`vitline run` on a host, by the cluster's address. Without a preflight, which has its own test and
        would take longer than most of the rest."""
        log = self.directory / f"driver-{len(self.drivers)}.log"
        options = ("--address", self.cluster, "--preflight", "off")
        command = (sys.executable, "-m", "launch", "run", *arguments, *options)
        self.drivers.append(self.on(host, *command, log=log))
        return self.drivers[-1]

    def output(self, number: int = -1) -> str:
        """What a driver wrote; by default the newest."""
        return (self.directory / f"driver-{number % len(self.drivers)}.log").read_text()
