"""Processes that work on blocks of texts: what comes out is what one process gives, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data import building, workers
from bert_train_parallel.data.folding import FoldingSettings
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.tokenizing import TextTokenizer

Contents = Callable[[Path], tuple[object, ...]]


@pytest.fixture
def contents(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Contents:
    """What the store of a CSV holds, built in blocks of sixteen samples of which the first two are worked on without a process."""
    monkeypatch.setattr(building, "_SAMPLES", 16)
    monkeypatch.setattr(workers, "_ALONE", 2)

    def of(source: Path) -> tuple[object, ...]:
        source.with_suffix(".sqlite").unlink(missing_ok=True)
        with prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), say=lambda line: None) as store:
            splits = [(store.rows(split), store.samples(split)) for split in ("train", "validate", "test")]
            rows = [(rows.tokens.tolist(), rows.offsets.tolist(), rows.sample.tolist()) for rows, _ in splits]
            return store.fingerprint, store.counts, rows, [store.texts(samples.ids) for _, samples in splits]

    return of


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started."""
    pids: list[int] = []
    start = workers._start

    def kept(tokenizer: TextTokenizer, settings: FoldingSettings) -> workers._Helper | None:
        helper = start(tokenizer, settings)
        pids.extend([helper._process.pid] if helper is not None else [])
        return helper

    monkeypatch.setattr(workers, "_start", kept)
    return pids


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_store_is_the_same_from_any_number_of_processes(
    contents: Contents, started: list[int], write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(400, long_every=7)
    found = {}
    for count in (1, 2, 3):
        monkeypatch.setattr(workers, "cores", lambda count=count: count)
        started.clear()
        found[count] = contents(source)
        assert len(started) <= count
        assert bool(started) == (count > 1)
        assert not any(map(is_alive, started))
    assert found[1] == found[2] == found[3]


def test_processes_that_are_killed_are_done_without(
    contents: Contents, started: list[int], write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(400)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    expected = contents(source)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    work_on, calls = workers._Helper.work_on, []

    def killed(self: workers._Helper, texts: list[tuple[str, ...]]) -> workers.Worked:
        calls.append(self)
        if len(calls) == 5:
            for pid in started:
                os.kill(pid, signal.SIGKILL)
        return work_on(self, texts)

    monkeypatch.setattr(workers._Helper, "work_on", killed)
    assert contents(source) == expected
    assert len(calls) >= 5
    assert not any(map(is_alive, started))


def test_a_machine_that_starts_no_more_processes_will_do(
    contents: Contents, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(400)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    expected = contents(source)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert contents(source) == expected


def test_processes_import_nothing_from_the_folder_that_the_user_stands_in(
    contents: Contents, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(400)
    (source.parent / "pickle.py").write_text("open('was_run', 'w').close()\n")
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    work_on, answers = workers._Helper.work_on, []

    def counted(self: workers._Helper, texts: list[tuple[str, ...]]) -> workers.Worked:
        answers.append(work_on(self, texts))
        return answers[-1]

    monkeypatch.setattr(workers._Helper, "work_on", counted)
    contents(source)
    assert not Path("was_run").exists()
    assert answers


def test_processes_end_with_the_one_that_is_killed(tiny_tokenizer: Path) -> None:
    program = f"""
        import time
        from bert_train_parallel.config import DataConfig
        from bert_train_parallel.data import workers
        from bert_train_parallel.data.tokenizing import load_tokenizer

        workers._ALONE = 0
        workers.cores = lambda: 2
        held = workers.Workers(load_tokenizer({str(tiny_tokenizer)!r}), DataConfig(sequence_len=32))
        for future in [held.submit([("the dog loved this town",)]) for _ in range(8)]:
            future.result()
        helpers = [held._helpers.get() for _ in range(2)]
        print(*(helper._process.pid for helper in helpers if helper is not None), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert all(map(is_alive, pids))
        parent.kill()
    ends_at = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < ends_at
        time.sleep(0.01)
