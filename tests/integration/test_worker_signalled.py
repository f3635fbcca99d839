"""SIGTERM and SIGUSR1 while a worker starts, compiles, saves, validates and evaluates: it ends with a
checkpoint and exit code 75, and goes on as if nothing had been. In the middle of steps: test_worker.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.weights.files import load_weights
from pipeline.config import (
    AugmentSettings,
    CheckpointSettings,
    DataView,
    EngineSettings,
    EvaluateJob,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.config.train import ValidationSettings
from pipeline.events import Event, read_events
from pipeline.rundir import JobDir, RunDir, write_json
from pipeline.train.samplelog import read_sample_log
from tests.helpers.train_jobs import write_train_job

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("worker_signalled.py")
STEPS = 12
TIMEOUT_S = 400
TERM, USR1 = signal.SIGTERM, signal.SIGUSR1
# Moment, signal → the step after which it stops, or the first and last step that it may be.
CASES = {
    ("start", TERM): (0, 0),
    ("validation", TERM): (4, 4),
    ("validation", USR1): (4, 4),
    ("last validation", TERM): (STEPS, STEPS),
    ("saving", TERM): (6, 9),  # the save of step 6; the one of step 9 would wait for it
    ("saving", USR1): (6, 9),
}
TEST = DataView(path="data/glyphs", split="test")


def digest_of(moment: str, number: signal.Signals) -> str:
    return f"{moment.replace(' ', '-')}-{number.name}"


def add_training(run: Path, digest: str, *, compiled: bool = False) -> JobDir:
    settings = TrainSettings(
        model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
        image_size=16,
        duration=f"{STEPS} steps",
        batch=12,
        optimizer=OptimizerSettings(warmup="2 steps"),
        engine=EngineSettings(kind="plain", compile=compiled),
        checkpoint=CheckpointSettings(every="3 steps"),
        validation=ValidationSettings(every="4 steps"),
        log_every="1 steps",
    )
    view = DataView(path="data/glyphs", split="train")
    job = TrainJob(data=view, validate_on=None if compiled else TEST, settings=settings, seed=1)
    if compiled:
        job = job.model_copy(
            update={"settings": settings.model_copy(update={"validation": ValidationSettings()})}
        )
    return write_train_job(run, digest, job)


def add_evaluation(run: Path, digest: str, weights: str) -> JobDir:
    job = EvaluateJob(data=TEST, weights=weights, image_size=16, augment=AugmentSettings(), batch=4)
    directory = RunDir(run).job(digest)
    head = {"schema": 1, "digest": digest, "name": "evaluate", "stage": "evaluate", "stage_version": 1}
    write_json(directory.job, {**head, "slice": {}, "inputs": {}, "work": job.model_dump(mode="json")})
    return directory


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def codes(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Exit codes of each job, all done in one process that forks."""
    cases: dict[str, Any] = {"undisturbed": None}
    cases |= {digest_of(*case): list(case) for case in CASES} | {"evaluated": ["evaluation", TERM]}
    for digest in cases:
        add_training(run_dir, digest)
    add_evaluation(run_dir, "evaluated", "jobs/undisturbed/weights.safetensors")
    given = tmp_path_factory.mktemp("cases") / "cases.json"
    given.write_text(json.dumps(cases))
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(run_dir), str(given)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, list[int]] = json.loads(ended.stdout)
    return found


def of_kind(job: JobDir, kind: str) -> list[Event]:
    return [event for event in read_events(job.events)[0] if event["event"] == kind]


def check_equal(job: JobDir, undisturbed: JobDir) -> None:
    assert read_sample_log(job) == read_sample_log(undisturbed)
    losses = [{e["step"]: e["loss"] for e in of_kind(j, "progress")} for j in (job, undisturbed)]
    assert losses[0] == losses[1]
    ours, theirs = (load_weights(j.weights)[0] for j in (job, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("moment", "number"), CASES, ids=lambda value: str(getattr(value, "name", value)))
def test_a_signal_at_any_moment_saves_and_ends_with_75(
    run_dir: Path, codes: dict[str, list[int]], moment: str, number: signal.Signals
) -> None:
    digest = digest_of(moment, number)
    job = RunDir(run_dir).job(digest)
    assert codes[digest] == [75, 0]
    first, last = CASES[moment, number]
    # After its last step a training has nothing to stop: it only has to be scored again.
    stopped = [e["step"] for e in of_kind(job, "stopped")] if moment != "last validation" else [STEPS]
    assert len(stopped) == 1
    assert first <= stopped[0] <= last
    saved = [e["step"] for e in of_kind(job, "checkpoint") if e["attempt"] == 1]
    assert saved[-1:] == [stopped[0]][: stopped[0]]
    assert [e["step"] for e in of_kind(job, "start")] == [0, stopped[0]]
    if "validation" in moment:
        scored = [e["step"] for e in of_kind(job, "validate") if e["attempt"] == 1]
        assert stopped[0] not in scored, "the signal was heard only after all had been scored"
    check_equal(job, RunDir(run_dir).job("undisturbed"))


def test_an_evaluation_stops_between_batches_and_is_done_again(
    run_dir: Path, codes: dict[str, list[int]]
) -> None:
    job = RunDir(run_dir).job("evaluated")
    assert codes["evaluated"] == [75, 0]
    assert [e["attempt"] for e in of_kind(job, "done")] == [2]
    result = job.read_result()
    assert result is not None
    assert result["metrics"]["eval/n"] == 18


# What `python -m pipeline.train.worker JOB` does, signalled when it begins to import PyTorch.
SIGNALLED_EARLY = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
runpy.run_module("pipeline.train.worker", run_name="__main__", alter_sys=True)
"""


def test_a_signal_before_pytorch_is_imported_is_heard_at_the_first_poll(run_dir: Path) -> None:
    job = add_training(run_dir, "early")
    command = [sys.executable, "-c", SIGNALLED_EARLY, str(job.job), "--device=cpu"]
    ended = subprocess.run(command, env=environment(), timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 75
    assert [e["step"] for e in of_kind(job, "stopped")] == [0]


# The compiler that torch.compile starts: the first time the whole group is signalled while it runs. No shell
# script, because a shell clears the mask of signals.
COMPILER = """#!{python}
import os, signal, sys
try:
    os.mkdir("{mark}")
    os.killpg(0, signal.SIGTERM)
except FileExistsError:
    pass
os.execvp("g++", ["g++", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_signal_to_the_whole_group_does_not_break_compilation(run_dir: Path, tmp_path: Path) -> None:
    mark, compiler = tmp_path / "signalled", tmp_path / "compiler"
    compiler.write_text(COMPILER.format(python=sys.executable, mark=mark))
    compiler.chmod(0o755)
    variables = environment(CXX=str(compiler), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))

    def do(job: JobDir) -> int:
        command = [sys.executable, "-m", "pipeline.train.worker", str(job.job), "--device=cpu"]
        # A group of its own, or the signal would reach the test.
        worker = subprocess.Popen(command, env=variables, start_new_session=True)
        try:
            return worker.wait(TIMEOUT_S)
        finally:
            worker.kill()
            worker.wait()

    cut, whole = (add_training(run_dir, name, compiled=True) for name in ("compiled", "compiled-whole"))
    assert do(cut) == 75
    assert mark.exists(), "nothing was compiled"
    assert [e["step"] for e in of_kind(cut, "stopped")] == [1]
    assert (cut.checkpoints / "step-000000001" / "COMPLETE").exists()
    assert do(cut) == 0
    assert do(whole) == 0
    check_equal(cut, whole)
