"""The house rules on who may import whom, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bert_train_parallel"
FOUNDATION = {"errors", "command_line", "rank", "run_files", "progress", "processes", "gpus", "records", "model_names", "lost_peer"}
SHARED = FOUNDATION | {"config", "metrics"}

# Room -> rooms and modules it may import beside itself; a dotted name allows one module of a room.
MAY_IMPORT = {
    "config": {"errors"},
    "metrics": set(),
    "data": SHARED,
    "tasks": SHARED | {"data"},
    "models": SHARED | {"tasks", "data.batches", "data.tokenizing"},
    "launching": FOUNDATION,
    "training": SHARED | {"models", "tasks", "data", "provenance.hooks"},
    "predict": SHARED | {"models", "tasks", "data"},
    "analysis": SHARED | {"tasks", "data.store", "data.batches", "provenance.reader"},
    "sweeps": SHARED | {"launching", "data.store", "data.sources", "models.reading"},
    "provenance": SHARED,
}
HEAVY = {"torch": {"models", "training", "predict", "provenance"}, "temporalio": {"sweeps"}, "matplotlib": {"analysis"}}


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_room_imports_only_what_its_door_allows() -> None:
    wrong = []
    for path, room in modules():
        if room in ("__init__", "__main__"):
            continue
        allowed = MAY_IMPORT.get(room, set()) | ({room} if room not in FOUNDATION else FOUNDATION)
        for name in imported(path):
            if not name.startswith("bert_train_parallel."):
                continue
            inside = name.removeprefix("bert_train_parallel.")
            if inside.startswith("__version__"):
                continue
            if not any(inside == door or inside.startswith(door + ".") for door in allowed):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {inside}")
    assert not wrong


def test_nothing_imports_a_command_line() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, _ in modules()
        if path.name != "__main__.py"
        for name in imported(path)
        if name.startswith("bert_train_parallel.") and "cli" in name.split(".")
    ]
    assert not wrong


def test_heavy_packages_stay_in_their_rooms() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, room in modules()
        for name in imported(path)
        for heavy, rooms in HEAVY.items()
        if name.split(".")[0] == heavy and room not in rooms and not room.startswith("__")
    ]
    assert not wrong


def test_the_foundation_needs_the_standard_library_alone() -> None:
    # pynvml is looked for inside functions only, and is allowed to be missing
    allowed = sys.stdlib_module_names | {"bert_train_parallel", "pynvml"}
    wrong = [
        f"{path.name} imports {name}"
        for path, room in modules()
        if room in FOUNDATION or room == "launching"
        for name in imported(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module",
    [
        "bert_train_parallel",
        "bert_train_parallel.launching.cli",
        "bert_train_parallel.data.preparation",
        "bert_train_parallel.analysis.cli",
        "bert_train_parallel.sweeps.workflows",
    ],
)
def test_importing_loads_no_torch_and_no_charts(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'matplotlib'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
