"""A launch beside an asyncio program."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.sweeps import launches


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_launcher_that_cannot_be_started_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "launcher_command", lambda events: [str(tmp_path / "none")])

    async def left_open() -> int:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FileNotFoundError):
            await launches.launch(LaunchRequest((sys.executable, "a.py")), tmp_path / "output.log", lambda: None)
        return len(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(left_open()) == 0
