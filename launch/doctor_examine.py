"""The doctor at work: asks the nodes, hands their answers to the judgements, and gathers the checks.

To be imported only when Ray is connected: importing Ray reads the environment once.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import doctor_checks as checks
from launch import doctor_software as software
from launch import doctor_together as together
from launch.doctor_checks import Check
from launch.doctor_cluster import Nodes, alive_nodes, auth_is_on, control_address, spread
from launch.doctor_report import Asked, Report
from launch.plan import plan_config
from launch.plan_answer import Given, RunPlan
from pipeline.config import RunConfig, WebdatasetSource
from pipeline.data.braces import expand_braces
from pipeline.data.manifest import FILE, load_manifest
from pipeline.driver import plan_run, run_dir_of
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.stages import prepare


def examine_cluster(config: RunConfig | None, asked: Asked) -> Report:
    """All checks, on the cluster that this process is connected to."""
    began = time.monotonic()
    deadline = began + asked.timeout_s
    nodes = alive_nodes(config)
    found = [together.gang_fits(nodes.slots, config.pretrain.gang)] if config else []
    found.append(together.exposure(control_address(), auth_is_on(), asked.allow_open_ray))
    if config is not None:
        found.append(together.tracking(config.tracking, Path(config.root)))
    with _meeting_place(config) as directory:
        request = _request(config, asked, directory)
        facts, silent = nodes.examine(request, deadline)
        found.append(together.answered(nodes.names, silent, asked.timeout_s))
        if facts:
            found += _single(config, nodes, facts)
            found += _joint(nodes, facts, directory, asked, deadline)
    hosts = {node: str(fact["host"]) for node, fact in facts.items()}
    # From here on nodes at fault go by the names that a scheduler knows.
    named = [replace(check, at=tuple(hosts.get(node, node) for node in check.at)) for check in found]
    return Report(nodes.names, tuple(named), time.monotonic() - began)


def _single(config: RunConfig | None, nodes: Nodes, facts: checks.Facts) -> list[Check]:
    """Checks of each node by itself and against the others."""
    found = [software.same_software(facts), *software.known_bad(facts), software.leftovers(facts)]
    found += checks.limits(facts)
    found += checks.gpu_health(facts, wanted=bool(config and config.pretrain.gang.gpus_per_worker))
    found.append(checks.rates(facts))
    if config is None:
        return found
    found += [software.same_settings(facts), checks.data_readable(facts)]
    plan = _plan(config)
    if plan is not None:
        found.append(checks.disk_fits(facts, plan.disk.checkpoint, plan.disk.total))
        ranks = spread(nodes.slots, config.pretrain.gang.workers)
        # Memory of devices is the plan's own matter; here it is that of the machine.
        if plan.device.name == "cpu":
            need = {node: count * plan.memory.total for node, count in ranks.items()}
            found.append(checks.memory_fits(facts, need))
    return found


def _joint(
    nodes: Nodes, facts: checks.Facts, directory: str | None, asked: Asked, deadline: float
) -> list[Check]:
    """Checks of all nodes together; one node has nobody to meet."""
    gpus = {node: len(fact["gpus"]) for node, fact in facts.items()}
    members = nodes.members(gpus)
    try:
        found = [together.clocks(members.clock_offsets(deadline))]
        if directory is not None:
            found.append(together.storage(*members.exchange_files(directory, deadline)))
        if len(members.firsts) > 1:
            found += together.reachable(members.reach(deadline))
        if len(members.places) > 1 and not asked.quick:
            found.append(together.all_reduce(members.all_reduce(deadline)))
        return found
    except TimeoutError as error:
        slow = Check(
            "nodes together",
            "fail",
            f"{error} was not done in {asked.timeout_s:.0f} s",
            "an answer",
            "raise --timeout-s on a busy cluster; else look at the network between the nodes",
        )
        return [slow]
    finally:
        members.close()


# ---------------------------------------------------------------- what is asked of the nodes


@contextlib.contextmanager
def _meeting_place(config: RunConfig | None) -> Iterator[str | None]:
    """A directory inside the run's, for the files that nodes write for each other; None without a run."""
    if config is None:
        yield None
        return
    launch = run_dir_of(config).launch.resolve()
    try:
        launch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=launch) as place:
            # Other nodes may run as other users of the same group.
            Path(place).chmod(0o770)
            yield place
    except OSError as error:
        raise EnvironmentUnfit(
            f"{launch} cannot be written: {error.strerror}",
            "a run's directory that the driver can write",
            "set root to another place, or correct its permissions",
        ) from error


def _request(config: RunConfig | None, asked: Asked, directory: str | None) -> dict[str, Any]:
    request: dict[str, Any] = {
        "quick": asked.quick,
        "directory": directory,
        "config": None if config is None else config.model_dump(mode="json"),
        "shards": [],
        "manifest": None,
    }
    return request if config is None else request | _data(config)


def _data(config: RunConfig) -> dict[str, Any]:
    """Manifest and outer shards of pre-training's dataset, as far as they are there before the run; of a
    mixture, of the one with the largest weight."""
    shares = config.pretrain.shares
    name = max(shares, key=lambda name: shares[name])
    run = run_dir_of(config)
    planned = {item.job.name: item for item in plan_run(config, run)}
    directory = run.job(planned[prepare.job_name(name)].digest).path.resolve()
    if (directory / FILE).exists():
        shards = [
            str(directory / shard.name) if "://" not in shard.name else shard.name
            for shard in load_manifest(directory).splits["train"].shards
        ]
        return {"manifest": str(directory / FILE), "shards": sorted({shards[0], shards[-1]})}
    source = config.datasets[name]
    if isinstance(source, WebdatasetSource):
        shards = list(expand_braces(source.train))
        ends = {shards[0], shards[-1]}
        return {"shards": sorted(s if "://" in s else str(Path(s).absolute()) for s in ends)}
    return {}


def _plan(config: RunConfig) -> RunPlan | None:
    """The plan, where it can be made; a dataset of unknown size is not the doctor's business."""
    try:
        return plan_config(config, Given())
    except UserError:
        return None
