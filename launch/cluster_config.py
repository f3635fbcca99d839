"""What a cluster offers and how a run is put on it: the settings of `vitline launch`.

A file of its own (configs/clusters/*.yaml), so that one cluster serves many runs and one run many
clusters. Nothing here changes a result, so nothing here is part of a job's digest.

    ClusterConfig
    ├── nodes, gpus_per_node, cpus_per_node, join_timeout_s, environment
    ├── ray         a Ray cluster that runs already
    ├── slurm       directives, container, requeues
    └── kubernetes  image, volume, queue, deadlines of a KubeRay RayJob

Secrets have no place in these files: a token is a file named by its path, a password a Kubernetes
Secret named by its name.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.config_io import read_yaml
from pipeline.errors import ConfigError

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|ACCESS_KEY|API_KEY", re.IGNORECASE)
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
# One directive of Slurm a line: `--name` or `--name=value`; a newline would start another line of the script.
_DIRECTIVE = re.compile(r"^--[a-z][a-z0-9-]*(=[^\n\r\"'`$\\#]+)?$")
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _VARIABLE.match(name):
            raise ValueError(f"{name!r} is no name of a variable")
        if _SECRET.search(name):
            raise ValueError(
                f"{name} looks like a secret, and these files are kept: export it in the shell that "
                "submits (Slurm), or name a Secret under kubernetes.secrets"
            )
        if any(ord(character) < 32 for character in text):
            raise ValueError(f"{name} holds a control character")
    return value


def _check_directives(value: tuple[str, ...]) -> tuple[str, ...]:
    for line in value:
        if not _DIRECTIVE.match(line):
            raise ValueError(f"{line!r} is no directive; expected --name or --name=value, without quotes")
    return value


class RaySettings(Settings):
    """A Ray cluster that runs already, reached through its dashboard (the Jobs API)."""

    dashboard: str = Field("http://127.0.0.1:8265", pattern=r"^https?://[^/@\s]+/?$", description="URL")
    token_file: str | None = Field(
        None, description="file with the cluster's token; None: RAY_AUTH_TOKEN_PATH"
    )
    driver_cpus: float = Field(1, ge=0, description="that the driver takes of the cluster")


class ContainerSettings(Settings):
    runtime: Literal["pyxis", "apptainer"]
    image: str = Field(pattern=r"^\S+$", description="as the runtime takes it: a URI, or a file")
    mounts: tuple[str, ...] = Field(
        (), description="more paths that the container sees under their own names"
    )


class SlurmSettings(Settings):
    partition: str | None = Field(None, pattern=r"^[\w,.-]+$")
    account: str | None = Field(None, pattern=r"^[\w.-]+$")
    qos: str | None = Field(None, pattern=r"^[\w.-]+$")
    time: str = Field("24:00:00", pattern=r"^(\d+|(\d+-)?\d+(:\d+){0,2})$", description="limit of one job")
    exclusive: bool = Field(True, description="whole nodes; Ray expects them")
    signal_s: int = Field(
        300, ge=30, le=65535, description="SIGUSR1 comes this long before the limit: time for a checkpoint"
    )
    max_requeues: int = Field(20, ge=0, description="of one job, when the run stops unfinished")
    command: str = Field("vitline", pattern=r"^\S+$", description="on the nodes: a name on PATH, or a path")
    setup: tuple[str, ...] = Field((), description="lines of shell before srun, as 'module load cuda'")
    container: ContainerSettings | None = None
    extra: Annotated[tuple[str, ...], AfterValidator(_check_directives)] = Field(
        (), description="more directives, verbatim, as --constraint=h100"
    )


class EgressRule(Settings):
    cidr: str = Field(pattern=r"^[0-9a-fA-F.:]+/\d+$")
    port: int = Field(ge=1, le=65535)


class KubernetesSettings(Settings):
    """One RayJob: a cluster of its own that goes when the run has ended."""

    namespace: str = Field("default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    image: str | None = Field(None, pattern=r"^\S+$", description="with vitline in it, best by digest")
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="the one inside the image")
    volume_claim: str | None = Field(
        None, description="PersistentVolumeClaim (ReadWriteMany) that holds the runs"
    )
    mount: str = Field(
        "/vitline", pattern=r"^/[\w./-]+$", description="where it is mounted; also the working directory"
    )
    secrets: tuple[str, ...] = Field(
        (), description="Secrets whose keys become variables of the driver's pod"
    )
    token_secret: str | None = Field(None, description="Secret with Ray's token; None: KubeRay makes one")
    queue: str | None = Field(None, description="LocalQueue of Kueue: the job is admitted as a whole")
    cpus: int = Field(8, ge=1, description="of a worker pod")
    memory: str = Field("64Gi", pattern=_QUANTITY, description="of a worker pod")
    shared_memory: str = Field("16Gi", pattern=_QUANTITY, description="/dev/shm of a worker pod")
    head_cpus: int = Field(4, ge=1)
    head_memory: str = Field("16Gi", pattern=_QUANTITY)
    uid: int = Field(1000, ge=1, description="user and group of all processes")
    rdma: bool = Field(False, description="adds the capability IPC_LOCK, which RDMA needs")
    node_selector: dict[str, str] = {}
    runtime_class: str | None = None
    grace_s: int = Field(300, ge=30, description="between SIGTERM and SIGKILL: time for a checkpoint")
    deadline_s: int = Field(7 * 86400, ge=60, description="the whole job, retries included")
    start_deadline_s: int = Field(1800, ge=60, description="until it runs: quota, image pull")
    retries: int = Field(3, ge=0, description="new clusters after a failure; each continues the run")
    keep_s: int = Field(600, ge=0, description="how long the finished job stays")
    egress: tuple[EgressRule, ...] = Field(
        (), description="more that the pods may reach, as a tracking server"
    )


class ClusterConfig(Settings):
    """One cluster."""

    nodes: int | None = Field(None, ge=1, description="None: as many as the pre-training's gang needs")
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_node: int | None = Field(None, ge=1, description="None: what the node or the scheduler says")
    join_timeout_s: int = Field(600, ge=10, description="until all nodes are there")
    preflight: Literal["full", "quick", "off"] = Field(
        "quick", description="checks of all nodes before the run; full: devices and network too"
    )
    environment: Annotated[dict[str, str], AfterValidator(_check_environment)] = Field(
        {}, description="variables on every node, as NCCL_SOCKET_IFNAME: ib0"
    )
    ray: RaySettings = RaySettings()
    slurm: SlurmSettings = SlurmSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()


def load_cluster(path: Path | None) -> ClusterConfig:
    """The cluster described in `path`; defaults for None.

    Raises:
        ConfigError: a file that is missing or not YAML, an unknown key (the nearest is named), a value
            that is not allowed.
    """
    if path is None:
        return ClusterConfig()
    try:
        return ClusterConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(
            f"{path}: " + "\n       ".join(_lines(error)),
            "settings of a cluster, as in configs/clusters/",
            "correct these, or take them out to get the defaults",
        ) from None


def _lines(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong, at most five."""
    lines = []
    for item in error.errors()[:5]:
        dotted = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known(item["loc"][:-1]), n=3, cutoff=0.4)
            lines.append(f"unknown key {dotted}" + (f"; nearest: {', '.join(near)}" if near else ""))
        else:
            lines.append(f"{dotted} is {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return lines


def _known(place: tuple[int | str, ...]) -> list[str]:
    model: Any = ClusterConfig
    for part in place:
        field = model.model_fields.get(str(part)) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    return list(model.model_fields) if hasattr(model, "model_fields") else []
