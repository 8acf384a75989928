"""Rows of a large split, which all processes of a machine map from one file beside the store."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.mapped_rows import forget_mapped_rows
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store

from .conftest import Disk


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array.base, memoryview) and isinstance(array.base.obj, mmap.mmap)


def test_rows_of_a_large_split_are_mapped_from_one_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def arrays() -> list[np.ndarray]:
        rows = store.rows("train")
        return [rows.tokens, rows.offsets, rows.sample, rows.targets, rows.segments_at]

    in_memory = arrays()
    assert not any(map(is_mapped, in_memory))
    monkeypatch.setattr(Store, "mapped_from", 0)

    def check_mapped() -> None:
        for mapped, expected in zip(arrays(), in_memory, strict=True):
            assert is_mapped(mapped)
            assert mapped.dtype == expected.dtype
            assert np.array_equal(mapped, expected)

    check_mapped()
    (file,) = store.path.parent.glob(".*.rows")
    before = file.stat().st_mtime_ns
    check_mapped()
    assert file.stat().st_mtime_ns == before
    with open(file, "ab") as longer:  # cut short or spoilt: written anew
        longer.write(b"xx")
    check_mapped()


MAPPER = """
import sys, time
from pathlib import Path
from bert_train_parallel.data.store import Store
Store.mapped_from = 0
arrays = Store._arrays
def slowly(self, split):
    time.sleep(0.5)  # so that all have looked for the file before one has written it
    return arrays(self, split)
Store._arrays = slowly
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
rows = store.rows("train")
maps = [line.split(None, 5) for line in Path("/proc/self/maps").read_text().splitlines() if ".rows" in line]
print(*{(inode, path) for *_, inode, path in maps}, int(rows.tokens.sum()), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is mapped")
def test_processes_that_come_at_the_same_time_map_the_same_file(write_csv: Callable[..., Path], tiny_tokenizer: Path) -> None:
    source = write_csv(300)
    with prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), say=lambda line: None) as store:
        command = [sys.executable, "-c", MAPPER, str(store.path)]
        children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        (said,) = {child.communicate(timeout=60)[0] for child in children}
        (file,) = store.path.parent.glob(".*.rows")
        assert said == f"{(str(file.stat().st_ino), str(file))} {store.rows('train').tokens.sum()}\n"
        assert {path.name for path in source.parent.iterdir()} == {source.name, store.path.name, file.name}


def test_rows_that_cannot_be_written_beside_the_store_are_taken_from_no_file_that_others_could_write(
    store: Store, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.rows("train").tokens
    monkeypatch.setattr(Store, "mapped_from", 0)
    store.rows("train")
    (file,) = store.path.parent.glob(".*.rows")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    planted = temporary / file.name
    planted.write_bytes(bytes(file.stat().st_size))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    shutil.copy(store.path, disk.folder)
    disk.make_read_only()
    with Store.open(disk.folder / store.path.name) as copy:
        found = copy.rows("train").tokens
    assert is_mapped(found)
    assert np.array_equal(found, expected)
    assert list(temporary.iterdir()) == [planted]
    assert [path.name for path in disk.folder.iterdir()] == [store.path.name]


def test_rows_are_read_into_memory_where_no_file_takes_them(store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = store.rows("train").tokens
    monkeypatch.setattr(Store, "mapped_from", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    shutil.copy(store.path, disk.folder)
    disk.make_read_only()
    with Store.open(disk.folder / store.path.name) as copy:
        found = copy.rows("train").tokens
    assert not is_mapped(found)
    assert np.array_equal(found, expected)


def test_rows_are_read_into_memory_where_the_system_maps_no_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: object, **settings: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))  # as some network file systems do

    expected = store.rows("train").tokens
    monkeypatch.setattr(Store, "mapped_from", 0)
    monkeypatch.setattr(mmap, "mmap", refuses)
    assert np.array_equal(store.rows("train").tokens, expected)


def test_mapped_rows_that_another_process_forgets_at_any_moment_are_had_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = store.rows("train").tokens
    monkeypatch.setattr(Store, "mapped_from", 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for more rounds in the same time
    ended = threading.Event()

    def forget() -> None:
        while not ended.is_set():
            forget_mapped_rows(store.path)

    forgetting = threading.Thread(target=forget)
    forgetting.start()
    try:
        for _ in range(200):
            assert np.array_equal(store.rows("train").tokens, expected)
    finally:
        ended.set()
        forgetting.join()


def test_what_a_killed_process_left_of_writing_mapped_rows_goes_with_the_store(
    write_csv: Callable[..., Path], tiny_tokenizer: Path
) -> None:
    source = write_csv(60)
    for sequence_len in (32, 16):
        prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=sequence_len), str(source), say=lambda line: None).close()
        if sequence_len == 32:
            for ending in (".rows", ".rows.lock", ".rows.0123abcd.part"):
                (source.parent / f"{'.' * (1 + (ending != '.rows'))}leanings.sqlite.0123.train{ending}").touch()
    assert {path.name for path in source.parent.iterdir()} == {source.name, "leanings.sqlite"}
