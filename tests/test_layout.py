"""The walls of the house: who may import whom, how large a file may grow, what its head must say.

See docs/architecture.md. These tests read the source as text; they run in `make lint` too.
"""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "pipeline", "launch")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Rooms from top to bottom; a room may import rooms below it, and itself.
ROOMS = {
    "launch": 8,
    "pipeline.driver": 7,
    "pipeline.retrain": 5,
    "pipeline.workload": 6.5,
    "pipeline.executor": 6.3,
    "pipeline.jobqueue": 6.2,
    "pipeline.fanout": 6,
    "pipeline.admission": 6,
    "pipeline.stages": 4,
    "pipeline.gang": 4,
    "pipeline.preemption": 3.5,
    "pipeline.recovery": 3,
    "pipeline.keeping": 3,
    "pipeline.remote_state": 2.5,
    "pipeline.cluster": 4,
    "pipeline.tracking": 4,
    "pipeline.tracking_model": 4,
    "pipeline.tracking_pass": 4,
    "pipeline.tracking_registry": 4,
    "pipeline.tracking_runs": 4,
    "pipeline.tracking_state": 4,
    "pipeline.tracking_uri": 4,
    "pipeline.report": 4,
    "pipeline.graph": 3,
    "pipeline.train": 2,
    # Below train: the worker fits the classifiers of few-shot, kNN and linear protocols.
    "pipeline.transfer": 1.5,
    "pipeline.data": 1,
    "model": 0,
}
# May be imported from anywhere in pipeline and launch, and import nothing above themselves.
SHARED = {
    "pipeline.errors",
    "pipeline.events",
    "pipeline.rundir",
    "pipeline.config",
    "pipeline.config_io",
    "pipeline.lease",
}
# One room of several files; only `tracking` knows MLflow.
TRACKING = {room for room in ROOMS if room.startswith("pipeline.tracking")}
# Each of these libraries belongs to the files that own it.
OWNERS = {
    "ray": {
        "pipeline/gang.py",
        "pipeline/fanout.py",
        "pipeline/cluster.py",
        "pipeline/preemption.py",
        "launch/",
    },
    "mlflow": {
        "pipeline/tracking.py",
        "pipeline/tracking_model.py",
        "pipeline/tracking_registry.py",
        "pipeline/tracking_runs.py",
    },
    "deepspeed": {"pipeline/train/engine.py", "pipeline/train/zero.py", "pipeline/train/fragments.py"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules that `path` imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room_of(module: str) -> str | None:
    matches = [room for room in [*ROOMS, *SHARED] if module == room or module.startswith(f"{room}.")]
    return max(matches, key=len) if matches else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    here = room_of(name_of(path))
    for module in imports_of(path):
        if module.split(".")[0] not in PACKAGES:
            continue
        there = room_of(module)
        if there is None or there == here or here is None or {there, here} <= TRACKING:
            continue
        if there in SHARED:
            assert here != "model", f"{path} imports {module}: model stands alone"
        elif here in SHARED:
            pytest.fail(f"{path} imports {module}: a shared module imports only shared ones")
        else:
            assert ROOMS[there] < ROOMS[here], f"{path} imports {module}, which stands beside or above it"


# Two shared modules may import each other in one direction only, as any others.
def test_no_import_cycles() -> None:
    known = {name_of(path): path for path in FILES}
    edges = {
        name: {module for module in imports_of(path) if module in known and module != name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' → '.join((*trail, name))}"
        if name not in done:
            for module in edges[name]:
                visit(module, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("library", OWNERS)
def test_each_heavy_library_has_its_owner(library: str) -> None:
    for path in FILES:
        relative = str(path.relative_to(ROOT))
        if any(module.split(".")[0] == library for module in imports_of(path)):
            assert any(relative.startswith(owner) for owner in OWNERS[library]), (
                f"{relative} imports {library}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_a_head_and_stay_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring at its head"
    relative = str(path.relative_to(ROOT))
    assert len(text.splitlines()) <= 300, f"{relative} is over 300 lines: split it by ideas"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_can_be_read_without_scrolling(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            lines = (node.end_lineno or 0) - node.lineno + 1 - len(docstring.splitlines())
            limit = 100 if node.name == "train" else 60
            assert lines <= limit, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = metadata.packages_distributions()
    for package in PACKAGES:
        others = set(owners.get(package, [])) - {"vitline"}
        assert not others, f"{others} also installs a package {package!r}"


def test_no_module_named_after_nothing() -> None:
    for path in FILES:
        assert path.stem not in {"utils", "common", "helpers", "misc"}, f"{path}: name the idea"
