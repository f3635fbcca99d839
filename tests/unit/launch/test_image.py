"""The Dockerfile as text: what it copies is let through, it ends as the user of the pods, it holds no secret.

Building it takes an engine, a base and minutes: docs/operations.md says how that was tried.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from launch.cluster_config import KubernetesSettings
from pipeline.cluster import RAY_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]
SECRET = re.compile("TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def of(name: str) -> list[str]:
    return [arguments for word, arguments in instructions() if word == name]


def test_what_is_copied_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "all is left out that is not named"
    named = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for line in of("COPY") if not line.startswith("--from") for source in line.split()[:-1]}
    assert {source.removeprefix("./") for source in copied} == named
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert set(packages["packages"]) < copied


def test_it_ends_as_the_user_of_the_pods_without_a_compiler() -> None:
    names = [word for word, _ in instructions()]
    last_stage = instructions()[len(names) - names[::-1].index("FROM") - 1 :]
    uid = KubernetesSettings().uid
    assert ("USER", f"{uid}:{uid}") in last_stage
    assert last_stage[-2:] == [("ENTRYPOINT", '["vitline"]'), ("CMD", '["--help"]')]
    made = " ".join(arguments for word, arguments in last_stage if word == "RUN")
    assert f"--uid {uid}" in made
    assert not re.search(r"\b(gcc|g\+\+|build-essential|pip install)\b", made)


def test_versions_are_pinned_and_nothing_secret_is_in_it() -> None:
    installs = re.findall(r"pip install[^;&]*", " ".join(of("RUN")))
    assert len(installs) == 2
    assert all("-c constraints.txt" in install for install in installs)
    assert not [line for line in (*of("ARG"), *of("ENV")) if SECRET.search(line)]


def test_its_environment_is_what_drivers_ask_for() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(of("ENV"))))
    name = "RAY_USAGE_STATS_ENABLED"
    assert environment[name] == RAY_ENVIRONMENT[name]
    assert environment["PYTHONSAFEPATH"] == "1"
