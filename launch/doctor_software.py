"""Judgements over the software of the nodes: alike everywhere, and none that is known to harm."""

from __future__ import annotations

import re
from collections.abc import Callable

from launch.doctor_checks import Check, Facts, Level, common, odd_ones, passed, verdict
from pipeline.errors import EnvironmentUnfit
from pipeline.train.zero_settings import check_version


def same_software(facts: Facts) -> Check:
    """Every node runs what most nodes run."""
    fields = sorted({name for fact in facts.values() for name in fact["versions"]})
    faults, odd = [], []
    for name in fields:
        values = {node: str(fact["versions"].get(name, "missing")) for node, fact in facts.items()}
        for node, value, most in odd_ones(values):
            faults.append(f"{node} has {name} {value}, most have {most}")
            odd.append(node)
    return verdict(
        "same software",
        "fail",
        faults,
        common(next(iter(facts.values()))["versions"]),
        "the same versions of everything on all nodes",
        "install the odd nodes anew from the same image or constraints.txt",
        odd,
    )


def same_settings(facts: Facts) -> Check:
    """Every node's code reads the configuration as most nodes' code does."""
    values = {node: str(fact["config"]) for node, fact in facts.items()}
    faults = [f"{node} reads it as {value}, most as {most}" for node, value, most in odd_ones(values)]
    refused = [node for node, value in values.items() if value.startswith("refused")]
    faults += [f"{node}: {values[node]}" for node in refused]
    return verdict(
        "same settings",
        "fail",
        faults,
        next(iter(values.values())) or "no configuration given",
        "the same resolved configuration on all nodes",
        "install the same vitline on all nodes",
        [*refused, *(node for node, _, _ in odd_ones(values))],
    )


def known_bad(facts: Facts) -> list[Check]:
    """Versions that are known to harm, by name and reason."""
    rules: list[tuple[str, Level, Callable[[tuple[int, ...]], bool], str]] = [
        (
            "ray",
            "fail",
            lambda v: v < (2, 54),
            "2.54 or newer: CVE-2026-27482, deletion without authentication",
        ),
        ("mlflow", "warn", lambda v: v < (3, 17, 2), "3.17.2 or newer: CVE-2026-2614 and others read files"),
        ("nccl", "fail", lambda v: (2, 28, 3) <= v <= (2, 28, 8), "not 2.28.3 to 2.28.8, which hang"),
        ("python", "warn", _old_python, "3.11.13, 3.12.11 or newer: CVE-2025-4517, when tars are extracted"),
    ]
    checks = []
    for name, level, bad, expected in rules:
        faults = {
            node: f"{node} has {name} {text}"
            for node, fact in facts.items()
            if (text := fact["versions"].get(name, "")) and (v := _numbers(text)) and bad(v)
        }
        if faults:
            found, at = "; ".join(faults.values()), tuple(faults)
            checks.append(Check(f"{name} version", level, found, expected, f"upgrade {name}", at))
    return (
        [*checks, _deepspeed(facts)] if checks else [passed("known-bad versions", "none"), _deepspeed(facts)]
    )


def _deepspeed(facts: Facts) -> Check:
    for node, fact in facts.items():
        try:
            check_version(fact["versions"]["deepspeed"])
        except (EnvironmentUnfit, ValueError) as error:
            expected, do = (
                (error.expected, error.do)
                if isinstance(error, EnvironmentUnfit)
                else ("an installed deepspeed", "pip install deepspeed")
            )
            found = f"{node}: {fact['versions']['deepspeed']}"
            return Check("deepspeed version", "fail", found, expected, do, (node,))
    return passed("deepspeed version", next(iter(facts.values()))["versions"]["deepspeed"])


def _old_python(version: tuple[int, ...]) -> bool:
    floors: dict[tuple[int, ...], int] = {(3, 11): 13, (3, 12): 11, (3, 13): 4}
    return len(version) > 2 and version[2] < floors.get(version[:2], 0)


def leftovers(facts: Facts) -> Check:
    faults = [
        f"{node}: {name}={value}" for node, fact in facts.items() for name, value in fact["leftovers"].items()
    ]
    return verdict(
        "environment",
        "warn",
        faults,
        "no debugging settings left over",
        "none of these outside of debugging",
        "unset them where the nodes are started",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
