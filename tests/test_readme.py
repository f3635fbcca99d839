"""What the documents tell people to type: commands that the command line knows, files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from launch.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Heads of shipped configurations tell their command too.
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# Stands for what the reader fills in.
PLACEHOLDER = re.compile(r"^[A-Z_]+$|HOST|…|\.\.\.|\[|\{")


def commands(page: Path) -> list[str]:
    """Commands in a page's fenced blocks, or in the head of a configuration, without the remarks behind."""
    text = page.read_text()
    if page.suffix == ".md":
        lines = "\n".join(
            re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        ).splitlines()
    else:
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   ")]
    return [line.split(" #")[0].strip() for line in lines if line.startswith(("vitline ", "make "))]


CASES = [
    pytest.param(command, id=f"{page.name}: {command[:60]}")
    for page in [*PAGES, *CONFIGS]
    if page.exists()
    for command in commands(page)
]


@pytest.mark.parametrize("command", CASES)
def test_commands_are_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        for target in (word for word in words[1:] if "=" not in word):
            assert target in targets, f"no target {target} in the Makefile"
        return
    leaf = typer.main.get_command(app)
    arguments = words[1:]
    names = ["vitline"]
    while arguments and hasattr(leaf, "commands"):
        assert arguments[0] in leaf.commands, f"no command {' '.join([*names, arguments[0]])}"
        names.append(arguments[0])
        leaf = leaf.commands[arguments[0]]
        arguments = arguments[1:]
    if hasattr(leaf, "commands") or any(PLACEHOLDER.search(word) for word in arguments):
        return
    leaf.make_context(" ".join(names), arguments)
    for word in arguments:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), f"{word} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
