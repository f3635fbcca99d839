"""What the doctor is asked, and its report: for programs, and as the error that ends a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launch.doctor_checks import Check
from pipeline.errors import EnvironmentUnfit
from pipeline.rundir import RunDir, write_json

FILE_NAME = "doctor.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """How much is to be examined."""

    quick: bool = False  # without the rates of devices and network
    allow_open_ray: bool = False
    timeout_s: float = 120


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one examination."""

    nodes: tuple[str, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.level == "fail")

    def raise_if_unfit(self) -> None:
        """Raises EnvironmentUnfit, naming every check that failed."""
        failed = self.failures
        if failed:
            raise EnvironmentUnfit(
                "\n       ".join(f"{check.name}: {check.found}" for check in failed),
                "\n          ".join(f"{check.name}: {check.expected}" for check in failed),
                "\n         ".join(f"{check.name}: {check.do}" for check in failed),
            )


def write_report(run: RunDir, report: Report) -> None:
    write_json(run.launch / FILE_NAME, report_json(report))


def report_json(report: Report) -> dict[str, Any]:
    fields = ("name", "level", "found", "expected", "do", "at")
    return {
        "schema": 1,
        "fit": not report.failures,
        "nodes": list(report.nodes),
        "seconds": round(report.seconds, 1),
        "checks": [{field: getattr(check, field) for field in fields} for check in report.checks],
    }
