"""The README's three journeys, typed line by line into a shell, beside copies of the shipped configurations.

The copies are made small before (`shrink`); the commands are the README's own. What stands for something of
the reader's is filled in, and what the text asks for between the lines is done: two runs to compare, a
second arrival of data before a way back is wanted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
# Ends when somebody ends it.
ENDLESS = ("mlflow ui",)
# What else than 0 is an answer: this machine may have no Slurm, or one that refuses the job, and may be unfit
# for the doctor; runs of few steps differ by chance.
ANSWERS = {
    "vitline doctor": {0, 7},
    "vitline launch slurm": {0, 7},
    "vitline compare runs/a latest": {0, 6},
}


def journey(name: str) -> list[str]:
    """Lines of the fenced block after the paragraph that begins with this bold word."""
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"^\*\*{name}\.\*\*.*?^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert match, f"no journey {name}"
    return match.group(1).splitlines()


def edit(file: Path, **changes: Any) -> None:
    """Replace settings, two levels deep."""
    plain = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(plain, sort_keys=False))


def shrink(configs: Path) -> None:
    """The shipped configurations with less of everything."""
    model = {"name": "vit_ti8", "options": {"width": 32, "depth": 2, "heads": 2, "mlp": 64}}
    optimizer = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup": "4 steps"}
    small = {"model": model, "optimizer": optimizer, "duration": "20 steps", "batch": 32}
    glyphs = {"source": "glyphs", "classes": 20, "train_per_class": 100, "test_per_class": 2}
    edit(
        configs / "demo.yaml",
        datasets={"glyphs": {**glyphs, "write": {"shard_samples": 100}}},
        pretrain=small,
        transfer={"datasets": ["digits"], "seeds": [0]},
    )
    edit(configs / "photos.yaml", transfer={"seeds": [0]})
    for name in ("quick", "photos"):
        tuning = {"duration": "5 steps", "learning_rates": [0.1], "optimizer": {"warmup": "1 steps"}}
        edit(configs / "transfer" / f"{name}.yaml", **tuning)
    edit(configs / "retrain" / "demo.yaml", pretrain=small)
    plain = yaml.safe_load((configs / "retrain" / "demo.yaml").read_text())
    plain["retrain"]["data"]["min_new_samples"] = 200
    # After so few steps one model may be much worse than the other by chance.
    plain["retrain"] |= {"gate": {"margin_pp": 60}, "poll_s": 0.5}
    edit(configs / "retrain" / "demo.yaml", retrain=plain["retrain"])


class Shell:
    """A person's shell in a directory with the configurations and the photos."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.said = ""  # by the last line, on both streams
        shutil.copytree(ROOT / "configs", home / "configs")
        (home / "tests").symlink_to(ROOT / "tests")
        shrink(home / "configs")
        tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def type(self, line: str) -> str:
        """What the line printed; its exit code has to be an answer that the README knows."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        expected = next((codes for start, codes in ANSWERS.items() if line.startswith(start)), {0})
        self.said = f"$ {line}\n{done.stdout}{done.stderr}"
        assert done.returncode in expected, f"exit code {done.returncode}\n{self.said}"
        assert "Traceback" not in self.said, self.said
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_launch(shell: Shell) -> None:
    lines = [line.replace("CONFIG", "configs/demo.yaml") for line in journey("Launch")]
    printed = {line.split(" #")[0].strip(): shell.type(line) for line in lines}
    assert "pretrain" in printed["vitline status runs/demo --watch"]
    assert (shell.home / "runs/demo/report/report.html").is_file()
    assert (shell.home / "runs/photos/report/report.html").is_file()
    # Where Slurm is not, what would be submitted is there all the same.
    assert list((shell.home / "runs/demo/launch").glob("job.sbatch"))
    # The same command again does nothing twice.
    again = next(line for line in lines if "pretrain.duration" in line)
    shell.type(again)
    assert "0 due" in shell.said


def test_retrain(shell: Shell) -> None:
    lines = journey("Retrain")
    copy = next(line for line in lines if " cp " in line)
    tick = next(line for line in lines if "--wait" in line)
    printed: dict[str, str] = {}
    for line in lines:
        if "rollback" in line:
            # To go back there must be two: another arrival, another round.
            shell.type(copy.replace("00000[0-3]", "00000[4-7]"))
            shell.type("sleep 6")  # retrain.data.settle_s
            assert shell.type(tick).startswith("promoted")
        if line == tick:
            shell.type("sleep 6")
        printed[line.split(" #")[0].strip()] = shell.type(line)
    assert printed["vitline retrain configs/retrain/demo.yaml --wait"].startswith("promoted: digits: ")
    assert "guard: weights are finite: yes" in printed["vitline retrain configs/retrain/demo.yaml --why"]
    back = next(text for line, text in printed.items() if "rollback" in line)
    assert back == "retrain-demo@champion is version 1: version 2 was taken back: labels of week 12\n"


def test_compare(shell: Shell) -> None:
    for name, seed in (("a", 0), ("b", 1), ("demo", 0)):
        shell.type(f"vitline run configs/demo.yaml name={name} seed={seed}")
    printed = {}
    for line in journey("Compare"):
        if not line.startswith(ENDLESS):
            printed[line.split(" #")[0].strip()] = shell.type(line)
    assert (shell.home / "compare.html").is_file()
    assert "digits" in printed["vitline compare runs/a runs/b --html compare.html"]
    order = printed["vitline data order configs/demo.yaml --step 500 --ranks 2"]
    assert len(order.splitlines()) >= 32
