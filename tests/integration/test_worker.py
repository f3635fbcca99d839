"""The worker as processes of its own: under torchrun, killed, stopped by signals, resumed by another
number of ranks. Its tests inside one process are in tests/unit/pipeline/train/test_worker.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.events import read_events
from pipeline.rundir import JobDir, write_json
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.samplelog import read_sample_log
from tests.helpers.train_jobs import write_train_job

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 150
STEPS = 24
WORKER = [sys.executable, "-m", "pipeline.train.worker"]


@pytest.fixture(scope="module")
def undisturbed(run_dir: Path) -> JobDir:
    """Two ranks, stage 1, under torchrun, with ray and mlflow blocked from import, to the end."""
    job = add_job(run_dir, "undisturbed")
    blocked = run_dir / "blocked"
    for name in ("ray", "mlflow"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked in this test')\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    ended = subprocess.run(
        [*command, "-m", "pipeline.train.worker", str(job.job), "--device=cpu"],
        env=environment(PYTHONPATH=f"{blocked}{os.pathsep}{ROOT}"),
        cwd=run_dir,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr, ended.stderr
    return job


class Ranks:
    """Worker processes of one attempt, started as any launcher does it: by five variables."""

    def __init__(self, job: JobDir, size: int, command: list[str] | None = None) -> None:
        """`command`: what each rank runs instead of the worker."""
        self.job = job
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.processes = []
        self.errors = [job.path / f"stderr-{time.time_ns()}-{rank}.txt" for rank in range(size)]
        for rank, errors in enumerate(self.errors):
            place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            started = command or [*WORKER, str(job.job), "--device=cpu"]
            variables = environment(**({} if size == 1 else place))
            with errors.open("w") as file:
                self.processes.append(subprocess.Popen(started, env=variables, stderr=file))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self) -> list[int]:
        """Exit codes, in order of rank; what failed ranks said goes to the test's output."""
        codes = [process.wait(TIMEOUT_S) for process in self.processes]
        for rank, code in enumerate(codes):
            if code:
                sys.stderr.write(f"rank {rank} ended with {code}: {self.errors[rank].read_text()}\n")
        return codes

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + TIMEOUT_S
        while max(losses(self.job), default=0) < step:
            assert time.monotonic() < end, "no progress"
            assert all(p.poll() is None for p in self.processes), self.errors[0].read_text()
            time.sleep(0.005)


def environment(**more: Any) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    ours = {
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return kept | ours | {name: str(value) for name, value in more.items()}


def add_job(run_dir: Path, digest: str, *, steps: int = STEPS, **engine: Any) -> JobDir:
    settings = TrainSettings(
        model=ModelSettings(
            name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64, "dropout": 0.0}
        ),
        image_size=16,
        duration=f"{steps} steps",
        batch=12,
        optimizer=OptimizerSettings(warmup="2 steps", decay_all=False, weight_decay=0.1),
        engine=EngineSettings(**engine),
        checkpoint=CheckpointSettings(every="5 steps", keep=3),
        log_every="1 steps",
    )
    view = DataView(path="data/glyphs", split="train")
    test = DataView(path="data/glyphs", split="test")
    job = TrainJob(data=view, validate_on=test, settings=settings, seed=1)
    return write_train_job(run_dir, digest, job)


def losses(job: JobDir, attempt: int | None = None) -> dict[int, float]:
    return {
        e["step"]: e["loss"]
        for e in read_events(job.events)[0]
        if e["event"] == "progress" and attempt in (None, e["attempt"])
    }


def continued(run_dir: Path, job: JobDir, digest: str, **engine: Any) -> JobDir:
    """A copy of `job` as if it had been cut off after its checkpoint of step 20, with another engine."""
    copy = add_job(run_dir, digest, **engine)
    source = job.checkpoints / "step-000000020"
    shutil.copytree(source, copy.checkpoints / source.name)
    return copy


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    yield
    command = ["pgrep", "-P", str(os.getpid()), "-f", "pipeline.train.worker"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1, "a worker still runs"


def test_torchrun_gives_the_losses_of_one_plain_rank(run_dir: Path, undisturbed: JobDir) -> None:
    plain = add_job(run_dir, "plain", kind="plain")
    with Ranks(plain, 1) as ranks:
        assert ranks.wait() == [0]
    assert list(losses(undisturbed)) == list(range(1, STEPS + 1))
    assert losses(plain) == pytest.approx(losses(undisturbed), rel=1e-5)
    assert read_sample_log(plain) == read_sample_log(undisturbed)
    one, two = plain.read_result(), undisturbed.read_result()
    assert one is not None
    assert two is not None
    assert two["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], rel=1e-4)


def test_a_killed_rank_costs_nothing(run_dir: Path, undisturbed: JobDir) -> None:
    job = add_job(run_dir, "killed")
    chance = random.Random()
    step, rank = chance.randrange(6, STEPS - 8), chance.randrange(2)
    with Ranks(job, 2) as ranks:
        ranks.wait_for_step(step)
        ranks.processes[rank].kill()
        # The survivor learns it from its next collective, and ends by itself.
        codes = ranks.wait()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (0, 75), f"killed at step {step}"
    assert not job.result.exists()
    # The save of step 5 may have been under way still: then all is done again.
    saved = max((found.step for found in complete_checkpoints(job.checkpoints)), default=0)
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [0, 0]
    resumed = min(losses(job, attempt=2))
    assert resumed == saved + 1
    assert losses(job) == losses(undisturbed), f"killed rank {rank} at step {step}, resumed at {resumed}"
    assert read_sample_log(job) == read_sample_log(undisturbed)


@pytest.mark.parametrize(
    ("digest", "world", "engine"),
    [("1-to-3-on-1", 1, {"stage": 3}), ("1-to-2-on-3", 3, {"stage": 2})],
)
def test_other_ranks_and_stages_go_on_from_a_checkpoint(
    run_dir: Path, undisturbed: JobDir, digest: str, world: int, engine: dict[str, Any]
) -> None:
    job = continued(run_dir, undisturbed, digest, **engine)
    with Ranks(job, world) as ranks:
        assert ranks.wait() == [0] * world
    after = losses(job)
    assert list(after) == list(range(21, STEPS + 1))
    assert after == pytest.approx({s: losses(undisturbed)[s] for s in after}, rel=1e-5)
    log, whole = read_sample_log(job), read_sample_log(undisturbed)
    assert log == {step: whole[step] for step in log}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_ends_with_a_checkpoint_and_code_75(run_dir: Path, number: signal.Signals) -> None:
    job = add_job(run_dir, f"stopped-{number.name}", kind="plain", steps=2000)
    with Ranks(job, 1) as ranks:
        ranks.wait_for_step(7)
        ranks.processes[0].send_signal(number)
        assert ranks.wait() == [75]
        message = ranks.errors[0].read_text()
    assert "found: a stop was asked for; step" in message
    assert "do this: run the same command again" in message
    assert "Traceback" not in message
    [stopped] = [e for e in read_events(job.events)[0] if e["event"] == "stopped"]
    assert (job.checkpoints / f"step-{stopped['step']:09d}" / "COMPLETE").exists()


def test_a_signal_to_one_rank_stops_all_at_the_same_step(run_dir: Path, undisturbed: JobDir) -> None:
    job = add_job(run_dir, "one-signalled", steps=2000)
    with Ranks(job, 2) as ranks:
        ranks.wait_for_step(7)
        ranks.processes[1].send_signal(signal.SIGUSR1)
        assert ranks.wait() == [75, 75]
    [stopped] = [e for e in read_events(job.events)[0] if e["event"] == "stopped"]
    log, whole = read_sample_log(job), read_sample_log(undisturbed)
    assert list(log) == list(range(1, stopped["step"] + 1))
    assert {s: ids for s, ids in log.items() if s <= STEPS} == {s: whole[s] for s in log if s <= STEPS}


def test_a_batch_that_does_not_divide_ends_before_training(run_dir: Path) -> None:
    job = add_job(run_dir, "odd", kind="zero")
    description = json.loads(job.job.read_text())
    description["work"]["settings"]["batch"] = 13
    write_json(job.job, description)
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [2, 2]
        message = ranks.errors[0].read_text()
    assert "batch 13 does not divide by 2 ranks = 2" in message
    assert "set batch to 12, the nearest that works" in message
    assert "Traceback" not in message
    failed = [e for e in read_events(job.events)[0] if e["event"] == "failed"]
    assert len(failed) == 1, "both ranks reported the same"
