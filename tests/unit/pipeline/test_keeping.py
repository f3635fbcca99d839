"""The state of a run at a URL: on a real S3 server (moto's, in its own process) and on a mounted path."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import keeping
from pipeline.config_io import load_config
from pipeline.data import remote as waits
from pipeline.errors import Busy, ConfigError, EnvironmentUnfit, VitlineError
from pipeline.events import EventLog
from pipeline.keeping import Keeper, with_checkpoints
from pipeline.lease import EXPIRY_S, Lease
from pipeline.remote_state import RemoteLease, RemoteState
from pipeline.rundir import RunDir, read_json, write_json
from pipeline.train.checkpoint import FORMAT
from tests.helpers.object_store import empty_bucket, s3_server

SMALL = Path(__file__).parents[2] / "integration" / "small.yaml"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["s3", "path"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a run that nobody has kept yet."""
    monkeypatch.setattr(waits, "_FIRST_WAIT_S", 0.01)
    if request.param == "path":
        return str(tmp_path / "mounted" / "small")
    empty_bucket(monkeypatch, request.getfixturevalue("server"), "runs")
    return "s3://runs/some/small"


class Machine:
    """A directory of runs, and a driver there."""

    def __init__(self, root: Path, url: str) -> None:
        self.run = RunDir(root / "small")
        self.state = RemoteState(url, tries=2)
        self.lease = Lease(self.run.lease, RemoteLease(url))
        self.told: list[str] = []
        self.keeper = Keeper(
            self.run, self.state, self.lease, f"{url}/checkpoints", self.told.append, interval_s=3600
        )

    def __enter__(self) -> Machine:
        self.lease.__enter__()
        try:
            self.keeper.__enter__()
        except BaseException:
            self.lease.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.keeper.__exit__(*error)
        finally:
            self.lease.__exit__(*error)

    def vanish(self) -> None:
        """As if its power had failed: nothing is sent any more, and the lease stays."""
        self.keeper._ended.set()
        self.lease._ended.set()
        self.keeper._thread.join()
        self.lease._thread.join()
        self.run.lease.unlink()
        holder = self.state.read_json("lease.json")
        assert holder is not None
        self.state.write(
            "lease.json", json.dumps({**holder, "host": "gone", "heartbeat": time.time() - EXPIRY_S}).encode()
        )


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, url)


def write(run: RunDir, name: str, text: str) -> None:
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text(text)


def read(run: RunDir) -> dict[str, str]:
    return {
        str(path.relative_to(run.path)): path.read_text()
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and path.name not in ("kept.json", "lease.json")
    }


def test_another_machine_has_all_but_what_is_of_the_moment(machine: Callable[[str], Machine]) -> None:
    state = {
        "config.resolved.yaml": "name: small\n",
        "events.jsonl": "{}\n",
        "jobs/aaaa/job.json": "{}",
        "jobs/aaaa/train/000000.tar": "shard",
        "jobs/aaaa/result.json": '{"digest": "aaaa"}',
        "jobs/bbbb/samples/attempt-0001/rank-00000.jsonl": '{"step":1,"ids":[4]}\n',
        "report/report.html": "<p>",
    }
    with machine("one") as one:
        for name, text in state.items():
            write(one.run, name, text)
        for name in (
            "launch/ray_token",
            "jobs/bbbb/stop",
            "jobs/.replaced/aaaa/job.json",
            "jobs/bbbb/.x.tmp",
        ):
            write(one.run, name, "of the moment")
        write(one.run, "jobs/bbbb/checkpoints/step-000000004/COMPLETE", "the ranks copy these")
    with machine("two") as two:
        assert read(two.run) == state
        assert (two.run.jobs / "aaaa" / "job.json").stat().st_mtime == pytest.approx(
            (one.run.jobs / "aaaa" / "job.json").stat().st_mtime, abs=2
        )


def test_a_name_that_leads_out_of_the_run_is_not_followed(tmp_path: Path, monkeypatch: Any) -> None:
    state = RemoteState(str(tmp_path / "mounted" / "small"))
    listed = {f"{state._root}/jobs/../../../escaped": {"size": 1}, f"{state._root}/events.jsonl": {"size": 1}}
    monkeypatch.setattr(state._files, "find", lambda *arguments, **more: listed)
    assert set(state.files()) == {"events.jsonl"}


def test_files_that_went_go_and_changed_ones_come_again(machine: Callable[[str], Machine]) -> None:
    with machine("one") as one:
        write(one.run, "jobs/aaaa/job.json", "first")
        write(one.run, "events.jsonl", "{}\n")
        one.keeper.keep()
        (one.run.path / "jobs" / "aaaa").rename(one.run.path / "jobs" / ".aaaa")
        write(one.run, "events.jsonl", "{}\n{}\n")
    assert set(one.state.files()) == {"events.jsonl"}
    assert one.state.read("events.jsonl") == b"{}\n{}\n"


def test_what_a_file_says_is_done_is_there_before_it(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine("one") as one:
        for name in (
            "tracking.json",
            "jobs/aaaa/result.json",
            "jobs/aaaa/weights.safetensors",
            "jobs/aaaa/events.jsonl",
            "jobs/aaaa/samples/attempt-0001/rank-00000.jsonl",
        ):
            write(one.run, name, "before")
        put, order = one.state._whole, []

        def seen(name: str, action: Callable[[str], object]) -> None:
            order.append(name)
            put(name, action)
            if "samples" in name:  # training goes on meanwhile
                write(one.run, "jobs/aaaa/events.jsonl", "before, and a checkpoint after")
                write(one.run, "tracking.json", "ahead of what is there")

        monkeypatch.setattr(one.state, "_whole", seen)
        one.keeper.keep()
        assert order[-3:] == ["jobs/aaaa/events.jsonl", "jobs/aaaa/result.json", "tracking.json"]
        assert one.state.read("jobs/aaaa/events.jsonl") == b"before"
        assert one.state.read("tracking.json") == b"before"
        one.keeper.keep()
        assert one.state.read("jobs/aaaa/events.jsonl") == b"before, and a checkpoint after"


def test_the_last_driver_here_keeps_what_it_had_not_sent(machine: Callable[[str], Machine]) -> None:
    one = machine("one")
    one.__enter__()
    write(one.run, "jobs/aaaa/events.jsonl", "sent\n")
    one.keeper.keep()
    write(one.run, "jobs/aaaa/events.jsonl", "sent\nnot sent\n")
    one.vanish()
    with machine("one") as again:
        assert read(again.run)["jobs/aaaa/events.jsonl"] == "sent\nnot sent\n"
    assert again.state.read("jobs/aaaa/events.jsonl") == b"sent\nnot sent\n"


def test_an_old_copy_gives_way_to_what_another_machine_did(machine: Callable[[str], Machine]) -> None:
    one = machine("one")
    one.__enter__()
    write(one.run, "jobs/aaaa/events.jsonl", "one\n")
    write(one.run, "jobs/cccc/result.json", '{"digest": "cccc"}')
    one.keeper.keep()
    write(one.run, "jobs/aaaa/events.jsonl", "one\nnever sent\n")
    write(one.run, "openings.jsonl", '{"by": "one"}\n')
    one.vanish()
    with machine("two") as two:
        write(two.run, "jobs/aaaa/events.jsonl", "one\ntwo\n")
        write(two.run, "jobs/aaaa/result.json", '{"digest": "aaaa"}')
        write(two.run, "openings.jsonl", '{"by": "two"}\n')
    stays = one.run.path / "jobs" / "cccc" / "result.json"
    inode = stays.stat().st_ino
    with machine("one") as back:
        found = read(back.run)
        assert found["jobs/aaaa/events.jsonl"] == "one\ntwo\n"
        assert found["jobs/aaaa/result.json"] == '{"digest": "aaaa"}'
        # Nothing that was done is thrown away, and no opening of a test split is forgotten.
        assert "one\nnever sent\n" in found.values()
        assert stays.stat().st_ino == inode, "a finished job was fetched again"
    assert back.state.read("openings.jsonl") == b'{"by": "two"}\n{"by": "one"}\n'


def test_a_second_driver_elsewhere_is_refused_by_name_until_the_first_is_gone(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.__enter__()
    pid, host = os.getpid(), socket.gethostname()
    with pytest.raises(Busy, match=f"process {pid} on {host}"), machine("two"):
        pass
    assert not (machine("two").run.lease).exists()
    one.vanish()
    with machine("two") as two:
        # The first one comes back: it sends nothing, and says why.
        write(one.run, "events.jsonl", "late")
        with pytest.raises(Busy, match="another driver's now"):
            one.keeper.keep()
        assert two.state.read("events.jsonl") is None


def test_a_driver_that_was_taken_over_says_so_at_its_end(machine: Callable[[str], Machine]) -> None:
    one = machine("one")
    one.__enter__()
    write(one.run, "events.jsonl", "late")
    # Since its last heartbeat.
    one.state.write("lease.json", json.dumps({"owner": "other", "host": "x", "heartbeat": 0}).encode())
    with pytest.raises(Busy, match="another driver's now"):
        one.__exit__(None, None, None)
    assert one.state.read("events.jsonl") is None


def test_a_store_that_fails_is_told_and_gets_everything_later(
    machine: Callable[[str], Machine], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine("one") as one:
        with monkeypatch.context() as broken:
            broken.setattr(one.state, "_whole", _refuse)
            write(one.run, "events.jsonl", "{}\n")
            with pytest.raises(EnvironmentUnfit, match="the store is down"):
                one.keeper.keep()
        one.keeper.keep()
        assert one.state.read("events.jsonl") == b"{}\n"
    one = machine("one")
    one.__enter__()
    write(one.run, "events.jsonl", "{}\n{}\n")
    monkeypatch.setattr(one.state, "_whole", _refuse)
    with pytest.raises(EnvironmentUnfit, match="it sends the rest"):
        one.__exit__(None, None, None)


def _refuse(name: str, put: Callable[[str], object]) -> None:
    raise OSError("the store is down")


def test_the_thread_tells_once_and_goes_on(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.keeper._interval_s = 0.05
    with one:
        put = one.state._whole
        monkeypatch.setattr(one.state, "_whole", _refuse)
        write(one.run, "events.jsonl", "{}\n")
        _wait(lambda: one.told)
        time.sleep(0.5)
        assert len(one.told) == 1
        assert "the run goes on" in one.told[0]
        monkeypatch.setattr(one.state, "_whole", put)
        _wait(lambda: one.state.read("events.jsonl") == b"{}\n")


def _wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("copied", [(4, 8), (8,)])
def test_a_copy_of_a_checkpoint_that_no_event_tells_of_is_not_resumed_from(
    machine: Callable[[str], Machine], copied: tuple[int, ...]
) -> None:
    with machine("one") as one:
        log = EventLog(one.run.job("aaaa").events)
        log({"event": "checkpoint", "step": 4})
        log.close()
        write(one.run, "jobs/bbbb/job.json", "{}")
        # Of cccc the ranks copied one before a pass knew of the job at all.
        for digest, step in [*(("aaaa", step) for step in copied), ("cccc", 4)]:
            place = f"checkpoints/{digest}/step-{step:09d}-12345678"
            one.state.write(f"{place}/COMPLETE", json.dumps({"format": FORMAT, "step": step}).encode())
    with machine("two") as two:
        left = [name for name in two.state.files() if name.startswith("checkpoints/")]
        if 4 in copied:
            assert left == ["checkpoints/aaaa/step-000000004-12345678/COMPLETE"]
            assert two.told == []
        else:
            # Its events say that it has saved: with them it would refuse to begin again.
            assert left == []
            assert not two.run.job("aaaa").events.exists()
            assert "begins anew" in two.told[0]
    assert ("jobs/aaaa/events.jsonl" in two.state.files()) == (4 in copied)
    assert "jobs/bbbb/job.json" in two.state.files()


def test_heartbeats_are_kept_once_they_are_old(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "jobs/aaaa/logs/attempt-0001/rank-00000.heartbeat"
    with machine("one") as one:
        write(one.run, name, "{}")
        one.keeper.keep()
        assert name not in one.state.files()
        monkeypatch.setattr(keeping, "_STILL_S", -1.0)
        one.keeper.keep()
        assert name in one.state.files()


def test_checkpoints_go_beside_the_state_unless_they_go_elsewhere() -> None:
    plain = load_config(SMALL, [])
    assert with_checkpoints(plain) == plain
    kept = with_checkpoints(load_config(SMALL, ["remote=s3://bucket/runs"]))
    assert kept.pretrain.checkpoint.remote == "s3://bucket/runs/small/checkpoints"
    own = load_config(SMALL, ["remote=s3://bucket/runs", "pretrain.checkpoint.remote=s3://other"])
    assert with_checkpoints(own) == own


def test_urls_that_cannot_be_used_are_one_message_each() -> None:
    with pytest.raises(ConfigError, match=r"root is 's3://bucket/runs'.*set remote=s3://bucket/runs"):
        load_config(SMALL, ["root=s3://bucket/runs"])
    with pytest.raises(ConfigError, match="a URL that can be written to"):
        RemoteState("https://host/runs/small")
    with pytest.raises(VitlineError, match="a URL that fsspec knows"):
        RemoteState("nowhere://runs/small")


def test_kept_json_is_of_one_url(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    """A directory that was kept elsewhere sends all of it to a new URL."""
    with machine("one") as one:
        write(one.run, "events.jsonl", "{}\n")
    other = Machine(tmp_path / "one", str(tmp_path / "another" / "small"))
    with other:
        pass
    assert other.state.read("events.jsonl") == b"{}\n"
    kept = read_json(one.run.kept)
    assert kept is not None
    assert kept["url"] == other.state.url
    write_json(one.run.kept, {**kept, "url": "x"})
