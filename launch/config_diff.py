"""What differs between two configurations, and what each difference makes due again.

A setting's stages are found by changing it alone in the first configuration and planning: the jobs that get
another digest. So the answer is the graph's own, not a table that could fall behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.config import RunConfig
from pipeline.config_io import flatten, load_config, parse_config
from pipeline.errors import ConfigError
from pipeline.graph import plan
from pipeline.rundir import RunDir
from pipeline.stages.catalog import STAGES, all_jobs

_ABSENT = object()
# Jobs of another name or place are not the same jobs; that they differ says nothing about a setting.
_IDENTITY = ("name", "root")


@dataclass(frozen=True)
class Difference:
    """One setting; `stages` that run again when it changes alone, None where it cannot change alone."""

    key: str
    first: Any
    second: Any
    stages: tuple[str, ...] | None


def open_config(path: Path) -> RunConfig:
    """A configuration file, or that of a run by its directory."""
    return load_config(RunDir(path).config if path.is_dir() else path)


def differences(first: RunConfig, second: RunConfig) -> list[Difference]:
    """Settings that differ, in the order of the first; those that only one has come with None."""
    plain, other = first.model_dump(mode="json"), second.model_dump(mode="json")
    here, there = dict(flatten(plain)), dict(flatten(other))
    before = _digests(first)
    found = []
    for key in dict.fromkeys([*here, *there]):
        if key in _IDENTITY or here.get(key, _ABSENT) == there.get(key, _ABSENT):
            continue
        alone = _changed(plain, key, there.get(key, _ABSENT))
        try:
            stages = _stages(before, _digests(parse_config(alone, "the first configuration")))
        except ConfigError:
            stages = None
        found.append(Difference(key, here.get(key), there.get(key), stages))
    return found


def stages_together(first: RunConfig, second: RunConfig) -> tuple[str, ...]:
    """Stages that have work to do when the second follows the first in one run directory."""
    return _stages(_digests(first), _digests(second))


def diff_table(found: list[Difference], names: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("setting", *names, "runs again"):
        table.add_column(Text(head), overflow="fold")
    for item in found:
        stages = "not alone" if item.stages is None else ", ".join(item.stages) or "nothing"
        table.add_row(*(Text(text) for text in (item.key, _shown(item.first), _shown(item.second), stages)))
    return table


def _digests(config: RunConfig) -> dict[str, str]:
    return {item.job.name: item.digest for item in plan(all_jobs(config), lambda digest: False, {})}


def _stages(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    due = {name.split("/")[0] for name, digest in after.items() if before.get(name) != digest}
    return tuple(stage for stage in STAGES if stage in due)


def _changed(plain: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the setting at a dotted key put in, or taken out."""
    result = copy.deepcopy(dict(plain))
    *parents, last = key.split(".")
    node = result
    for name in parents:
        inner = node.get(name)
        node[name] = inner if isinstance(inner, dict) else {}
        node = node[name]
    if value is _ABSENT:
        node.pop(last, None)
    else:
        node[last] = value
    return result


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
