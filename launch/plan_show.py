"""A plan as JSON, and as text for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.plan_answer import RunPlan
from launch.plan_devices import GIB
from launch.plan_memory import Memory


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """Plain types. Bytes, seconds and hours are in the names where they are not plain counts."""
    value = asdict(plan)
    value["memory"]["total"] = plan.memory.total
    value["transfer"]["memory"]["total"] = plan.transfer.memory.total
    value["disk"]["total"] = plan.disk.total
    if plan.nearest is not None:
        value["nearest"]["memory"]["total"] = plan.nearest.memory.total
    value["device"]["peak_tflops"] = dict(plan.device.peak_tflops)
    return {"schema": 1, **value}


def print_plan(plan: RunPlan, console: Console) -> None:
    """Five small tables' worth in one, then what is assumed, then what is wrong."""
    where = f"{plan.workers} × {plan.device.name}" + (f" on {plan.nodes} nodes" if plan.nodes else "")
    table = Table(
        "", "", "", title=f"{plan.name}: {where}", title_justify="left", box=box.SIMPLE, show_header=False
    )
    for what, value, detail in (*_training(plan), *_memory(plan), *_time(plan), *_disk(plan)):
        table.add_row(what, escape(value), escape(detail))
    console.print(table)
    for line in plan.assumptions:
        console.print(f"assumed: {line}", markup=False)
    for line in plan.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False)
    _print_nearest(plan, console)


def _training(plan: RunPlan) -> list[tuple[str, str, str]]:
    training = plan.training
    epochs = "" if training.epochs is None else f", {training.epochs:.4g} epochs"
    shape = f"{plan.workers} ranks × {training.micro_batch} × {training.accumulation} micro-batches"
    return [
        (
            "model",
            f"{training.parameters:,} parameters",
            f"{training.model}, {training.image_size} px, "
            + (f"{training.classes:,} classes" if training.classes else "masked patches"),
        ),
        ("", f"{training.macs / 1e9:.4g} GMACs", "one image, forward, head excluded"),
        ("steps", f"{training.steps:,}", f"of {training.batch:,} = {shape}"),
        ("images", f"{training.images:,}", f"pre-training{epochs}"),
        ("exaFLOPs", f"{training.exaflops:.4g}", "pre-training: 6 × MACs × images"),
        ("", f"{plan.transfer.exaflops:.4g}", f"{plan.transfer.trainings} fine-tunings, choices included"),
    ]


def _memory(plan: RunPlan) -> list[tuple[str, str, str]]:
    memory = plan.memory
    has = "" if plan.device.memory_gib is None else f"of {plan.device.memory_gib:g} GiB"
    return [
        ("memory", _gib(memory.total), f"a rank, {has or 'its size is not known'}"),
        ("", _gib(memory.states), _parts(memory)),
        ("", _gib(memory.activations), "activations of a micro-batch"),
        ("", _gib(memory.buffers), "DeepSpeed's buckets, autocast's copies of weights"),
        ("", _gib(memory.batch + memory.reserve), "pixels, gradients in flight, runtime, fragmentation"),
        *([("", _gib(memory.saving), "the copy that checkpoints are written from")] if memory.saving else []),
        ("", _gib(plan.transfer.memory.total), "a fine-tuning job"),
    ]


def _time(plan: RunPlan) -> list[tuple[str, str, str]]:
    rate, transfer = plan.rate, plan.transfer
    lines = [
        ("speed", f"{rate.images_per_s:,.0f} images/s", rate.how),
        ("time", duration(plan.hours), f"pre-training, {plan.workers * plan.hours:,.4g} device-hours"),
        (
            "",
            duration(transfer.hours),
            f"fine-tuning, {transfer.device_hours:,.4g} device-hours; {transfer.how}",
        ),
    ]
    if plan.read_mib_per_s is not None:
        lines.append(("reading", f"{plan.read_mib_per_s:,.0f} MiB/s", "from the shards, over all ranks"))
    if plan.network_gb_per_s:
        detail = "sent by each rank, so that nothing waits for the network"
        lines.append(("network", f"{plan.network_gb_per_s:,.3g} GB/s", detail))
    if plan.price is not None:
        lines.append(("price", f"{plan.price:,.2f}", f"for {plan.device_hours:,.4g} device-hours"))
    return lines


def _disk(plan: RunPlan) -> list[tuple[str, str, str]]:
    disk = plan.disk
    data = "not known" if disk.data is None else _gib(disk.data)
    rare = f", {disk.kept_for_good} of them for good" if disk.kept_for_good else ""
    held = ", two that may wait to be copied" if disk.remote else ""
    copies = [("", _gib(disk.remote), "copies at checkpoint.remote, not in the sum")] if disk.remote else []
    return [
        ("disk", _gib(disk.total), "under the run's directory"),
        (
            "",
            _gib(disk.checkpoints),
            f"checkpoints of {_gib(disk.checkpoint)}: those kept{rare}, one in the making{held}",
        ),
        *copies,
        ("", data, "shards that the run writes; adopted ones stay where they are"),
        ("", _gib(disk.weights + disk.sample_log), "weights and sample log"),
        ("", _gib(disk.transfer), "fine-tunings"),
    ]


def _print_nearest(plan: RunPlan, console: Console) -> None:
    nearest = plan.nearest
    if nearest is None:
        return
    if nearest.overrides:
        console.print(
            f"do this: {' '.join(nearest.overrides)}  takes {_gib(nearest.memory.total)}", markup=False
        )
    else:
        console.print(
            f"do this: more ranks or larger devices; the least that these can do with takes "
            f"{_gib(nearest.memory.total)}",
            markup=False,
        )


def _parts(memory: Memory) -> str:
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "masters": memory.masters,
        "moments": memory.moments,
    }
    return " + ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)


def _gib(size: int) -> str:
    if size < 10 * 2**20:
        return f"{size / 2**10:,.1f} KiB"
    return f"{size / 2**20:,.1f} MiB" if size < GIB else f"{size / GIB:,.1f} GiB"


def duration(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1 / 60:
        return f"{hours * 3600:.1f} s"
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
