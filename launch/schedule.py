"""Files that let a scheduler call `vitline retrain`: pure text, nothing is installed.

Overlap and missed ticks are settled by the tick itself (lease, coalescing); what the scheduler can do
against them is written besides. Exit codes 3 (nothing to do), 6 (not promoted) and 8 (busy) are no faults.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.cluster_config import ClusterConfig
from pipeline.errors import ConfigError

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Tick:
    """What is called, where, and when.

    Args:
        name: of the run. config, directory: absolute. vitline: absolute path of the command.
        schedule: five fields. timezone: of the time zone database.
    """

    name: str
    config: Path
    directory: Path
    vitline: str
    schedule: str
    timezone: str
    cluster: ClusterConfig

    @property
    def argv(self) -> list[str]:
        return [self.vitline, "retrain", str(self.config)]

    @property
    def unit(self) -> str:
        """A name that systemd, Airflow and Kubernetes take."""
        return "vitline-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def cron(tick: Tick) -> dict[str, str]:
    # cron reads % as the end of the line.
    command = shlex.join(["cd", str(tick.directory)]) + " && " + shlex.join(tick.argv)
    log = shlex.quote(str(tick.directory / f"{tick.unit}.log"))
    line = f"{tick.schedule} {command} --wait >> {log} 2>&1".replace("%", "\\%")
    text = (
        f"# vitline retrain of {tick.name}. Install: crontab -l | cat - FILE | crontab -\n"
        "# Exit codes 3 (nothing to do), 6 (not promoted) and 8 (another tick) are no faults.\n"
        "# cronie reads CRON_TZ; Debian's cron goes by the machine's zone: set that, or write its times.\n"
        f"CRON_TZ={tick.timezone}\n{line}\n"
    )
    return {f"{tick.unit}.cron": text}


def systemd(tick: Tick) -> dict[str, str]:
    quoted = " ".join('"' + word.replace("%", "%%").replace("$", "$$") + '"' for word in tick.argv)
    service = f"""\
[Unit]
Description=vitline retrain of {tick.name}

[Service]
Type=oneshot
WorkingDirectory={str(tick.directory).replace("%", "%%")}
ExecStart={quoted} --wait
SuccessExitStatus=3 6 8
TimeoutStartSec=infinity
NoNewPrivileges=yes
PrivateTmp=yes
"""
    days = "".join(f"OnCalendar={entry} {tick.timezone}\n" for entry in calendar(tick.schedule))
    timer = f"""\
[Unit]
Description=ticks of vitline retrain of {tick.name}

[Timer]
{days}Persistent=true
RandomizedDelaySec=60

[Install]
WantedBy=timers.target
"""
    return {f"{tick.unit}.service": service, f"{tick.unit}.timer": timer}


def calendar(schedule: str) -> list[str]:
    """A cron schedule as systemd's OnCalendar entries: two where day and weekday are both given, since
    cron then takes either."""
    minute, hour, day, month, weekday = schedule.split()
    clock = f"{_field(hour, 0)}:{_field(minute, 0)}:00"
    date = f"*-{_field(month, 1)}-"
    names = ",".join(_weekdays(weekday))
    if weekday == "*":
        return [f"{date}{_field(day, 1)} {clock}"]
    entries = [f"{names} {date}* {clock}"]
    return entries if day == "*" else [f"{date}{_field(day, 1)} {clock}", *entries]


def _field(text: str, first: int) -> str:
    return ",".join(_item(item, first) for item in text.split(","))


def _item(item: str, first: int) -> str:
    body, _, step = item.partition("/")
    body = body.replace("-", "..")
    return f"{first if body == '*' else body}/{step}" if step else body


def _weekdays(text: str) -> list[str]:
    days: list[str] = []
    for item in text.split(","):
        body, _, step = item.partition("/")
        low, _, high = ("0-6" if body == "*" else body).partition("-")
        days += [_WEEKDAYS[day] for day in range(int(low), int(high or low) + 1, int(step or 1))]
    return list(dict.fromkeys(days))


def airflow(tick: Tick) -> dict[str, str]:
    command = shlex.join(tick.argv) + " --wait"
    text = f'''\
"""vitline retrain of {tick.name}: copy into the DAG folder of Airflow 3. Imports nothing of vitline."""

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id={tick.unit!r},
    schedule={tick.schedule!r},
    start_date=pendulum.datetime(2026, 1, 1, tz={tick.timezone!r}),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="retrain",
        bash_command={command!r},
        cwd={str(tick.directory)!r},
        skip_on_exit_code=[3, 6, 8],
        retries=0,
    )
'''
    return {f"{tick.unit}.py": text}


def kubernetes(tick: Tick) -> dict[str, str]:
    """A CronJob whose pod runs the tick and the round: for runs that fit one pod."""
    settings = tick.cluster.kubernetes
    if settings.image is None or settings.volume_claim is None:
        raise ConfigError(
            "no kubernetes.image or no kubernetes.volume_claim",
            "an image with vitline, and a claim that holds runs and data",
            "name a cluster file: --cluster configs/clusters/kubernetes.yaml",
        )
    job = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": settings.deadline_s,
        "template": {"metadata": {"labels": {"app.kubernetes.io/name": tick.unit}}, "spec": _pod(tick)},
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": tick.unit, "namespace": settings.namespace},
        "spec": {
            "schedule": tick.schedule,
            "timeZone": tick.timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": job},
        },
    }
    return {"cronjob.yaml": yaml.safe_dump(manifest, sort_keys=False)}


def _pod(tick: Tick) -> dict[str, Any]:
    """Spec of the pod: not root, no capabilities, requests equal to limits."""
    settings = tick.cluster.kubernetes
    amounts = {"cpu": str(settings.cpus), "memory": settings.memory}
    if tick.cluster.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(tick.cluster.gpus_per_node)
    # Codes that are no faults end the pod well; the command's own words say which it was.
    script = 'vitline retrain "$0" --wait; code=$?; case $code in 3|6|8) exit 0;; *) exit $code;; esac'
    container: dict[str, Any] = {
        "name": "retrain",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "workingDir": settings.mount,
        "command": ["/bin/sh", "-c", script, str(tick.config)],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "runs", "mountPath": settings.mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if settings.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secrets]
    return {
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.uid,
            "runAsGroup": settings.uid,
            "fsGroup": settings.uid,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": settings.grace_s,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory},
            },
        ],
    }


RENDERERS: dict[str, Callable[[Tick], dict[str, str]]] = {
    "cron": cron,
    "systemd": systemd,
    "airflow": airflow,
    "kubernetes": kubernetes,
}
