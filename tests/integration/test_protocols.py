"""Every kind of protocol by the real command, through Ray: the same pre-training judged in five ways.

The files are those of configs/transfer/; what is overridden makes them small, and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.rundir import read_json

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = Path(__file__).parent / "small.yaml"
COMMON = ["image_size=32", "threads=1"]
TUNED = ["batch=16", "micro_batch=16", "precision=float32", "duration=6 steps", "optimizer.warmup=1 steps"]
PROBES = ("few_shot", "knn", "linear")
GROUPS = "groups={natural: [digits], structured: [count]}"
# The file's four specialised tasks are not there.
VTAB_MEANS = {"natural (1)", "structured (1)", "mean of groups (2 of 6)", "mean of tasks (2 of 6)"}
# Starts × datasets × seeds are evaluated; a protocol that chooses a rate has trainings for it.
CASES: dict[str, tuple[list[str], list[int], dict[str, int]]] = {
    "few_shot": (["shots=3"], [0, 1], {"evaluate": 8}),
    "knn": (["neighbours=5"], [0], {"evaluate": 4}),
    "linear": (["train_samples=60"], [0], {"evaluate": 4}),
    "vtab": ([*TUNED, "train_samples=60", GROUPS], [0], {"finetune": 4, "evaluate": 4}),
    "paper": (
        [
            *TUNED,
            "per_dataset={digits: {learning_rates: [0.01, 0.03], held_out: 0.5}, count: {held_out: 0.2}}",
        ],
        [0],
        {"choose": 12, "finetune": 4, "evaluate": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_protocol_from_end_to_end(name: str, finished_run: Path, vitline: Callable[..., Any]) -> None:
    own, seeds, stages = CASES[name]
    command = [str(SMALL), f"root={finished_run.parent}", f"transfer.seeds={seeds}"]
    command += [f"transfer.protocol=../../configs/transfer/{name}.yaml"]
    command += [f"transfer.protocol.{override}" for override in (*COMMON, *own)]
    told = vitline("run", *command)
    assert told.wait() == 0, told.text

    planned = vitline("run", *command, "--dry-run", "--json")
    assert planned.wait() in (0, 3), planned.text
    jobs = {job["name"]: job for job in json.loads(planned.text)}
    assert {job["state"] for job in jobs.values()} == {"done"}
    found = Counter(job["stage"] for job in jobs.values())
    assert found == {"prepare": 3, "pretrain": 1, "compare": 1, **stages}

    results = read_json(finished_run / "report" / "results.json")
    assert results is not None
    assert {row["protocol"] for row in results["rows"]} == {_named(name)}
    assert {(row["dataset"], row["label"], row["n"]) for row in results["rows"]} == {
        (dataset, start, n)
        for dataset, n in (("digits", 599), ("count", 60))
        for start in ("pretrained", "scratch")
    }
    for row in results["rows"]:
        assert row["interval"]["low"] <= row["top1"] <= row["interval"]["high"]
        assert (row["cost_by_stage"].get("finetune") is None) == (name in PROBES)
    assert {mean["name"] for mean in results["means"]} == (VTAB_MEANS if name == "vtab" else set())
    if name in PROBES:
        # Any rule over features beats one of ten; six steps of training need not.
        assert max(row["top1"] for row in results["rows"] if row["dataset"] == "digits") > 0.15


def _named(name: str) -> str:
    return {"few_shot": "few-shot", "vtab": "vtab-1k"}.get(name, name)
