"""What all benches share: the machine and versions a figure is from, and the file that keeps the figures."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results.jsonl"
PACKAGES = ("bert-train-parallel", "torch", "transformers", "tokenizers", "datasets", "accelerate", "temporalio", "optuna", "numpy")


def machine() -> str:
    """The processor, its cores, and the GPUs where there are any.

    >>> machine() != ""
    True
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0] if lines else name
    return f"{name}, {os.cpu_count()} cores" + "".join(f", {gpu}" for gpu in gpus())


def gpus() -> list[str]:
    """Names of the GPUs, by NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or no NVML: the library raises a kind of its own for each
        return []
    names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(number)) for number in range(pynvml.nvmlDeviceGetCount())]
    pynvml.nvmlShutdown()
    return names


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def asked_of(args: argparse.Namespace) -> dict[str, str]:
    """A bench's settings as they are kept; of files their names, whose places are of one machine.

    >>> asked_of(argparse.Namespace(train=Path("/data/train.tsv"), rounds=3, test=None))
    {'train': 'train.tsv', 'rounds': '3'}
    """
    return {name: value.name if isinstance(value, Path) else str(value) for name, value in vars(args).items() if value is not None}


def record(name: str, figures: dict[str, Any]) -> None:
    """Append a bench's figures to results.jsonl, with date, machine and versions."""
    line = {"bench": name, "date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions(), "figures": figures}
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"\n{line['machine']}; {', '.join(f'{package} {version}' for package, version in line['versions'].items())}")
    print(f"appended to {RESULTS}")
