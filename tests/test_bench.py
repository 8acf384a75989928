"""What benches reach into: a change of the trainer that breaks them shows here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bert_train_parallel.training.data_parallel import DataParallel
from bert_train_parallel.training.pace import Pace
from bert_train_parallel.training.stopwatch import Stopwatch

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


def test_a_slow_rank_of_the_bench_sleeps_twice_as_long_as_it_computes_and_notes_what_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((Pace, "send"), (Pace, "receive"), (Stopwatch, "start"), (Stopwatch, "stop"), (DataParallel, "_try")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that what the bench puts there goes away again
    monkeypatch.syspath_prepend(BENCH)
    import unequal

    slept: list[float] = []
    monkeypatch.setattr(unequal, "time", SimpleNamespace(perf_counter=iter([10.0, 14.0]).__next__, sleep=slept.append))
    unequal.note_messages("0", str(tmp_path / "notes"))
    unequal.sleep_twice_as_long()
    watch, world = Stopwatch(torch.device("cpu")), SimpleNamespace(size=1)
    watch.stop()  # gradients are averaged once before the first step
    watch.start()
    watch.stop()
    pace: Any = Pace(world)  # type: ignore[arg-type]
    pace.send(False, 12.0, 300)
    _, clock = pace.receive()
    assert slept == [8.0]
    assert json.loads((tmp_path / "notes.0").read_text()) == [12.0, 300]
    assert json.loads((tmp_path / "notes.clock").read_text()) == clock
