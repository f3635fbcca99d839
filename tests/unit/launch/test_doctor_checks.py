"""Judgements of the doctor over invented facts: each fault is named with its node, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from launch import doctor_checks as checks
from launch import doctor_software as software
from launch import doctor_together as together
from launch.doctor_checks import Check
from launch.doctor_report import Report, report_json
from pipeline.config import GangSettings, TrackingSettings
from pipeline.errors import EnvironmentUnfit

GPU = {
    "name": "NVIDIA H100",
    "driver_version": "570.1",
    "memory.total": "81559",
    "memory.used": "0",
    "ecc.errors.uncorrected.volatile.total": "0",
    "clocks_throttle_reasons.hw_slowdown": "Not Active",
}
VERSIONS = {
    "python": "3.12.11",
    "code": "abc",
    "vitline": "0.1.0",
    "torch": "2.14.1",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
    "mlflow": "3.17.2",
    "nccl": "2.27.5",
}


def node(**changes: Any) -> dict[str, Any]:
    """Facts of a node where all is well."""
    facts: dict[str, Any] = {
        "versions": dict(VERSIONS),
        "config": "1234",
        "leftovers": {},
        "memory_bytes": 64 * 2**30,
        "shm_bytes": 8 * 2**30,
        "disk_bytes": 2**40,
        "nofile": 1_048_576,
        "gpus": [],
        "data": {"manifest": "", "shards": {}},
        "gflops": [100.0],
    }
    return facts | changes


def three(**odd: Any) -> dict[str, dict[str, Any]]:
    """Three nodes, of which c is odd."""
    return {"a": node(), "b": node(), "c": node(**odd)}


def all_of(facts: checks.Facts) -> list[Check]:
    return [
        software.same_software(facts),
        software.same_settings(facts),
        *software.known_bad(facts),
        software.leftovers(facts),
        *checks.limits(facts),
        checks.memory_fits(facts, {"a": 2**30, "b": 2**30, "c": 2**30}),
        checks.disk_fits(facts, 2**30, 4 * 2**30),
        *checks.gpu_health(facts, wanted=False),
        checks.rates(facts),
        checks.data_readable(facts),
    ]


# Warnings that name the node at fault besides.
BLAMED = {"/dev/shm", "memory", "disk", "mlflow version", "python version"}


def test_nothing_is_found_where_all_is_well() -> None:
    assert {check.level for check in all_of(three())} == {"pass"}


@pytest.mark.parametrize(
    "odd, name, level, found",
    [
        ({"versions": VERSIONS | {"torch": "2.13.0"}}, "same software", "fail", "c has torch 2.13.0"),
        ({"versions": VERSIONS | {"ray": "2.53.1"}}, "ray version", "fail", "c has ray 2.53.1"),
        ({"versions": VERSIONS | {"mlflow": "3.17.1"}}, "mlflow version", "warn", "c has mlflow 3.17.1"),
        ({"versions": VERSIONS | {"nccl": "2.28.5"}}, "nccl version", "fail", "c has nccl 2.28.5"),
        ({"versions": VERSIONS | {"python": "3.11.7"}}, "python version", "warn", "c has python 3.11.7"),
        ({"versions": VERSIONS | {"deepspeed": "0.18.2"}}, "deepspeed version", "fail", "0.18.2"),
        ({"config": "9999"}, "same settings", "fail", "c reads it as 9999, most as 1234"),
        ({"config": "refused: pretrain.new"}, "same settings", "fail", "c: refused: pretrain.new"),
        ({"leftovers": {"NCCL_P2P_DISABLE": "1"}}, "environment", "warn", "c: NCCL_P2P_DISABLE=1"),
        ({"nofile": 1024}, "open files", "warn", "c: 1024"),
        ({"shm_bytes": 512 * 2**20}, "/dev/shm", "warn", "c: 512 MiB"),
        ({"shm_bytes": 60 * 2**20}, "/dev/shm", "fail", "c: 60 MiB"),
        ({"memory_bytes": 2**29}, "memory", "warn", "c has 0.5 GiB free"),
        ({"memory_bytes": 2**28}, "memory", "fail", "c has 0.2 GiB free"),
        ({"disk_bytes": 3 * 2**30}, "disk", "warn", "c sees 3.0 GiB free"),
        ({"disk_bytes": 2**30}, "disk", "fail", "c sees 1.0 GiB free"),
        ({"gflops": [90.0]}, "matrix products", "warn", "c at 90% of the median"),
        ({"data": {"manifest": "unreadable: gone", "shards": {}}}, "data", "fail", "c: manifest unreadable"),
        ({"data": {"manifest": "", "shards": {"s": "OSError: no"}}}, "data", "fail", "c: s: OSError: no"),
    ],
)
def test_each_fault_is_named_with_its_node(odd: dict[str, Any], name: str, level: str, found: str) -> None:
    faults = [check for check in all_of(three(**odd)) if check.level != "pass"]
    assert [(check.name, check.level) for check in faults if check.name == name] == [(name, level)]
    check = next(check for check in faults if check.name == name)
    assert found in check.found
    assert check.expected
    assert check.do
    assert check.at == (() if level == "warn" and name not in BLAMED else ("c",))
    # A version of its own is also an odd one; else one fault is one row.
    assert {check.name for check in faults} <= {name, "same software"}


def test_gpus_are_alike_free_and_without_errors() -> None:
    facts = {name: node(gpus=[dict(GPU) for _ in range(8)], gflops=[7e5] * 8) for name in "abc"}
    assert {check.level for check in checks.gpu_health(facts, wanted=True)} == {"pass"}
    facts["c"]["gpus"] = facts["c"]["gpus"][:7]
    facts["b"]["gpus"][3] |= {"memory.used": "20000", "ecc.errors.uncorrected.volatile.total": "2"}
    facts["a"]["gpus"][0] |= {"clocks_throttle_reasons.hw_slowdown": "Active"}
    alike, errors, free = checks.gpu_health(facts, wanted=True)
    assert (alike.level, alike.found) == ("fail", "c has 7 × NVIDIA H100, most have 8 × NVIDIA H100")
    assert (errors.level, errors.found) == ("fail", "b GPU 3: uncorrected memory errors")
    assert free.level == "warn"
    assert "b GPU 3: 20000 of 81559 MiB in use" in free.found
    assert "a GPU 0: slowed down" in free.found
    facts["a"]["gflops"] = [5e5] + [7e5] * 7
    assert (checks.rates(facts).level, checks.rates(facts).found) == ("fail", "a GPU 0 at 71% of the median")


def test_gpus_that_are_asked_for_and_not_there() -> None:
    first = checks.gpu_health(three(), wanted=True)[0]
    assert first.level == "fail"
    assert "a has none" in first.found


def test_a_gang_that_cannot_fit_is_named_at_once() -> None:
    gang = GangSettings(workers=5, cpus_per_worker=2)
    check = together.gang_fits({"a": 2, "b": 2}, gang)
    assert (check.level, "hold 4 ranks" in check.found) == ("fail", True)
    assert "workers to 4" in check.do
    assert together.gang_fits({"a": 3, "b": 2}, gang).level == "pass"
    smaller = gang.model_copy(update={"min_workers": 4})
    assert together.gang_fits({"a": 2, "b": 2}, smaller).level == "pass"
    assert together.gang_fits({"a": 2, "b": 1}, smaller).level == "fail"


def test_clocks_forgive_what_the_round_trip_may_hide() -> None:
    assert together.clocks({"a": (2.0, 1.5), "b": (0.0, 0.1)}).level == "pass"
    slow = together.clocks({"a": (-5.0, 0.1), "b": (0.0, 0.1)})
    assert (slow.level, "a is -5.0 s" in slow.found) == ("warn", True)
    assert together.clocks({"a": (60.0, 0.1)}).level == "fail"


def test_storage_that_is_not_shared_is_told_from_one_that_is_read_only() -> None:
    good = together.storage({"a": "1", "b": "2"}, {n: {"a": "1", "b": "2"} for n in "ab"})
    assert good.level == "pass"
    local = together.storage(
        {"a": "1", "b": "2"},
        {"a": {"a": "1", "b": "error: No such file"}, "b": {"a": "old", "b": "2"}},
    )
    assert local.level == "fail"
    assert "a does not see what b wrote (error: No such file)" in local.found
    assert "b does not see what a wrote (other content)" in local.found
    read_only = together.storage({"a": "error: Read-only file system"}, {"a": {"a": "error: gone"}})
    assert read_only.found == "a cannot write: error: Read-only file system"


def test_ports_fail_and_names_only_warn() -> None:
    pairs = {("a", "b"): "10.0.0.2:4000: timed out", ("b", "a"): "the name a does not resolve: unknown"}
    ports, names = together.reachable(pairs)
    assert (ports.level, ports.found) == ("fail", "a → b: 10.0.0.2:4000: timed out")
    assert (names.level, "b: the name a" in names.found) == ("warn", True)


def test_all_reduce_names_the_slow_link_and_the_wrong_sum() -> None:
    def answer(pairs: dict[int, float], **changes: Any) -> dict[str, Any]:
        return {"whole": 10.0, "pairs": pairs, "right": True, "error": ""} | changes

    even = {"a": answer({0: 10.0, 2: 10.0}), "b": answer({0: 10.0, 1: 9.0}), "c": answer({1: 9.0, 2: 10.0})}
    assert together.all_reduce(even).level == "pass"
    slow = even | {"b": answer({0: 10.0, 1: 4.0})}
    assert (together.all_reduce(slow).level, together.all_reduce(slow).found) == (
        "warn",
        "b – c at 40% of the median",
    )
    wrong = even | {"c": answer({}, right=False)}
    assert (together.all_reduce(wrong).level, together.all_reduce(wrong).found) == ("fail", "c: wrong sum")


def test_a_cluster_that_anybody_can_command_is_a_fault() -> None:
    assert together.exposure("10.0.0.1:6379", token=True, allowed=False).level == "pass"
    assert together.exposure("127.0.0.1:6379", token=False, allowed=False).level == "pass"
    assert together.exposure("10.0.0.1:6379", token=False, allowed=False).level == "fail"
    assert together.exposure("10.0.0.1:6379", token=False, allowed=True).level == "warn"


@pytest.fixture
def server() -> Iterator[Callable[[int], str]]:
    """A server that answers every request with one code."""
    code = 200

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def answer(with_code: int) -> str:
        nonlocal code
        code = with_code
        return f"http://127.0.0.1:{running.server_port}"

    yield answer
    running.shutdown()
    running.server_close()
    thread.join()


def test_mlflow_faults_have_a_hint_each_and_only_warn(server: Callable[[int], str], tmp_path: Path) -> None:
    def check(code: int) -> Check:
        return together.tracking(TrackingSettings(uri=server(code)), tmp_path)

    assert [check(code).level for code in (200, 404, 401, 403, 500)] == [
        "pass",
        "pass",
        "warn",
        "warn",
        "warn",
    ]
    assert "MLFLOW_TRACKING_TOKEN" in check(401).do
    assert "permission" in check(403).do
    nobody = together.tracking(TrackingSettings(uri="http://127.0.0.1:9"), tmp_path)
    assert (nobody.level, "does not answer" in nobody.found) == ("warn", True)
    assert together.tracking(TrackingSettings(), tmp_path / "not" / "yet").level == "pass"
    assert together.tracking(TrackingSettings(enabled=False), tmp_path).found == "tracking is off"


def test_a_report_names_every_failure_in_one_message() -> None:
    bad = [Check(name, "fail", f"{name} found", f"{name} expected", f"{name} do") for name in ("x", "y")]
    warning = Check("z", "warn", "z found", "", "")
    report = Report(("a",), (*bad, warning), 1.0)
    with pytest.raises(EnvironmentUnfit) as error:
        report.raise_if_unfit()
    assert error.value.exit_code == 7
    for text in ("x: x found", "y: y found", "x: x expected", "y: y do"):
        assert text in str(error.value)
    assert "z found" not in str(error.value)
    assert report_json(report)["fit"] is False
    Report(("a",), (warning,), 1.0).raise_if_unfit()
