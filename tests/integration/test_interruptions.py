"""Nothing is lost: ranks and whole runs are killed, and the sample log equals the undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.events import read_events
from pipeline.rundir import JobDir, RunDir, read_json
from pipeline.train.samplelog import read_sample_log

pytestmark = pytest.mark.ray

SMALL = Path(__file__).parent / "small.yaml"
PRETRAIN_ONLY = [
    "transfer.datasets=[digits]",
    "transfer.seeds=[0]",
    "transfer.starts=[pretrained]",
    "transfer.protocol.learning_rates=[0.1]",
    "transfer.protocol.duration=1 steps",
    "tracking.enabled=false",
    # Long enough to be caught in the middle.
    "pretrain.duration=60 steps",
]


def pretrain_of(run: Path) -> JobDir | None:
    for file in (run / "jobs").glob("*/job.json"):
        job = read_json(file)
        if job is not None and job["stage"] == "pretrain":
            return JobDir(file.parent)
    return None


def last_step(run: Path) -> int:
    job = pretrain_of(run)
    events = read_events(job.events)[0] if job else []
    return max((event["step"] for event in events if event["event"] == "progress"), default=0)


def losses(job: JobDir) -> dict[int, float]:
    """step → loss; of steps that were redone, the last."""
    return {e["step"]: e["loss"] for e in read_events(job.events)[0] if e["event"] == "progress"}


def wait_for(condition: Callable[[], Any], timeout_s: float = 180) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s")


def ranks_of(command: Any) -> list[psutil.Process]:
    """The processes of the gang's ranks: Ray names a worker after what it runs."""
    found = []
    for process in command.descendants():
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "RayTrainWorker" in title:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def undisturbed(vitline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    root = tmp_path_factory.mktemp("undisturbed")
    command = vitline("run", str(SMALL), f"root={root}", *PRETRAIN_ONLY)
    assert command.wait() == 0, command.text
    job = pretrain_of(root / "small")
    assert job is not None
    return job


def check_equal(run: Path, undisturbed: JobDir) -> None:
    job = pretrain_of(run)
    assert job is not None
    assert job.read_result() is not None
    log = read_sample_log(job)
    assert sorted(log) == list(range(1, 61))
    assert log == read_sample_log(undisturbed)
    assert losses(job) == losses(undisturbed)


def test_a_killed_rank_costs_nothing(
    vitline: Callable[..., Any], tmp_path: Path, undisturbed: JobDir
) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", *PRETRAIN_ONLY)
    target = random.SystemRandom().randrange(6, 40)
    wait_for(lambda: last_step(tmp_path / "small") >= target)
    ranks = ranks_of(command)
    assert len(ranks) == 2
    ranks[1].kill()
    assert command.wait() == 0, command.text
    job = pretrain_of(tmp_path / "small")
    assert job is not None
    assert job.read_generation() == 2, f"killed at step {target}"
    check_equal(tmp_path / "small", undisturbed)


def test_a_killed_run_costs_nothing(vitline: Callable[..., Any], tmp_path: Path, undisturbed: JobDir) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", *PRETRAIN_ONLY)
    target = random.SystemRandom().randrange(6, 40)
    wait_for(lambda: last_step(tmp_path / "small") >= target)
    started = command.descendants()
    command.process.kill()
    command.process.wait()
    status = vitline("status", str(tmp_path / "small"), "--json")
    assert status.wait() == 0
    states = {job["name"]: job["state"] for job in json.loads(status.text)["jobs"]}
    assert (states["prepare/glyphs"], states["pretrain"]) == ("done", "interrupted")
    # Ray ends what the driver started; the next driver does not wait for that.
    again = vitline("run", str(SMALL), f"root={tmp_path}", *PRETRAIN_ONLY)
    assert again.wait() == 0, f"killed at step {target}: {again.text}"
    check_equal(tmp_path / "small", undisturbed)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, [process.cmdline() for process in alive]


def test_a_run_stops_by_itself_when_its_time_is_over(vitline: Callable[..., Any], tmp_path: Path) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", "--stop-after", "1s", *PRETRAIN_ONLY)
    # Wherever it was by then, it has not done all; that what it saved is gone on from is tested below.
    assert command.wait() == 75, command.text
    assert "as --stop-after asked" in command.text
    assert "Traceback" not in command.text
    outcome = read_json(tmp_path / "small" / "result.json")
    assert outcome is not None
    assert outcome["exit_code"] == 75
    assert read_events(tmp_path / "small" / "events.jsonl")[0][-1]["state"] == "stopped"


# A terminal sends Ctrl-C to the whole group in the foreground; a scheduler ends the one process it knows.
@pytest.mark.parametrize(
    ("send", "number"),
    [pytest.param(os.killpg, signal.SIGINT, marks=pytest.mark.slow), (os.kill, signal.SIGTERM)],
)
def test_a_signal_saves_ends_with_75_and_leaves_no_process(
    vitline: Callable[..., Any],
    tmp_path: Path,
    undisturbed: JobDir,
    send: Callable[[int, int], None],
    number: signal.Signals,
) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", *PRETRAIN_ONLY)
    wait_for(lambda: last_step(tmp_path / "small") >= 6)
    started = command.descendants()
    send(command.process.pid, number)
    assert command.wait(180) == 75, command.text
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    job = pretrain_of(tmp_path / "small")
    assert job is not None
    stopped = next(e["step"] for e in read_events(job.events)[0] if e["event"] == "stopped")
    assert (job.checkpoints / f"step-{stopped:09d}" / "COMPLETE").exists()
    again = vitline("run", str(SMALL), f"root={tmp_path}", *PRETRAIN_ONLY)
    wait_for(lambda: last_step(tmp_path / "small") > stopped)
    started = again.descendants()
    assert again.wait() == 0, again.text
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    check_equal(tmp_path / "small", undisturbed)


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def test_torchrun_without_ray_and_mlflow_gives_the_same_losses(tmp_path: Path, undisturbed: JobDir) -> None:
    run = tmp_path / "small"
    source = undisturbed.path.parents[1]
    job = read_json(undisturbed.job)
    assert job is not None
    (run / "jobs").mkdir(parents=True)
    (run / "jobs" / job["inputs"]["data"]).symlink_to(source / "jobs" / job["inputs"]["data"])
    mine = RunDir(run).job(job["digest"])
    mine.path.mkdir()
    mine.job.write_text(json.dumps(job))
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "pipeline.train.worker", str(mine.job)),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert losses(mine) == losses(undisturbed)
    assert read_sample_log(mine) == read_sample_log(undisturbed)
