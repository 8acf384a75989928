"""What can be seen of a sweep from outside: its leaderboard, and its processes."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path

import psutil


def leaderboard(place: Path) -> list[dict[str, str]]:
    """The rows of a sweep's leaderboard, without what depends on the machine and its hour."""
    with open(place / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    changing = ("gpu_seconds", "attempts", "host")
    return [{name: value for name, value in row.items() if name not in changing} for row in rows]


def left_over(folder: Path) -> list[str]:
    """Processes of this user that still have to do with a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if str(folder) in words and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(words)
    return found
