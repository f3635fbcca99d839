"""Preflight: is every node of the cluster fit for the run, before a device waits for it?

    doctor_examine ─► alive nodes (doctor_cluster)
        ├─► one task pinned to each, all at once (doctor_node)  ─► doctor_checks, doctor_software
        └─► one actor on each, or on each GPU (doctor_gang)     ─► doctor_together
    ─► Report (doctor_report): a table (doctor_show), RUN/launch/doctor.json, exit code 7

Tasks and actors ask for no processors, so they run beside whatever a cluster is doing, and none outlives the
time limit. What a node cannot say becomes a fault of that node, never an exception here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from launch.doctor_report import Asked, Report, write_report
from pipeline.cluster import connect
from pipeline.config import RunConfig
from pipeline.driver import run_dir_of
from pipeline.rundir import RunDir


def run_doctor(config: RunConfig | None, address: str | None, asked: Asked) -> Report:
    """Examine a cluster: the one at `address` or in the configuration, or this machine.

    With a configuration, RUN/launch/doctor.json holds the report.

    Raises:
        EnvironmentUnfit: the cluster does not answer at all.
    """
    address = address or (config.cluster.address if config else None)
    # Not the run's own directory: a local cluster's token would replace that of a run that goes on there.
    with (
        tempfile.TemporaryDirectory(prefix="vitline-doctor-") as place,
        connect(RunDir(Path(place)), address),
    ):
        # Only now: importing Ray reads the environment that `connect` sets.
        from launch.doctor_examine import examine_cluster

        report = examine_cluster(config, asked)
    if config is not None:
        write_report(run_dir_of(config), report)
    return report


def preflight(config: RunConfig, run: RunDir, *, quick: bool) -> Report:
    """What the driver calls while it is connected to Ray; see launch/preflight.py.

    Raises:
        EnvironmentUnfit: a check failed; RUN/launch/doctor.json says all.
    """
    # Only now: importing Ray reads the environment that the driver has set.
    from launch.doctor_examine import examine_cluster

    # A cluster's operator decides how it is closed off; a run only says what it sees.
    report = examine_cluster(config, Asked(quick=quick, allow_open_ray=True))
    write_report(run, report)
    report.raise_if_unfit()
    return report
