"""A store is built once, reused while it fits, rebuilt aloud when it does not, and never half there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
from bert_train_parallel.data.store import Store
from bert_train_parallel.data.store_lock import only_builder
from bert_train_parallel.errors import BadSource, BadStore, NotWritable, StoppedBySignal

from .conftest import content_hash

SPLITS = ("train", "validate", "test")


class Prepare:
    """Prepares a source with the tiny tokenizer and keeps what was said."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.said: list[str] = []

    def __call__(self, source: Path | str, output_dir: Path | None = None, **settings: Any) -> Store:
        self.said.clear()
        config = DataConfig(**{"model": str(self.model), "sequence_len": 32} | settings)
        return prepare(config, str(source), str(output_dir) if output_dir else None, self.said.append)


@pytest.fixture
def prepared(tiny_tokenizer: Path) -> Prepare:
    return Prepare(tiny_tokenizer)


@pytest.fixture
def other_tokenizer(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "other_model"
    folder.mkdir()
    text = (tiny_tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(
        text.replace('"lowercase":true', '"lowercase":false').replace('"lowercase": true', '"lowercase": false')
    )
    return folder


def all_samples(store: Store) -> list[tuple[str, list[tuple[str, ...]], list[Any]]]:
    return [(split, store.texts(store.samples(split).ids), store.samples(split).labels.tolist()) for split in SPLITS]


def test_a_second_time_the_source_is_not_read_again(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    first = prepared(source)
    assert prepared.said[-1].startswith(f"{source.with_suffix('.sqlite')}: 60 samples (train 48, validate 6, test 6) in ")
    before = first.path.stat().st_ino
    second = prepared(source)
    assert prepared.said == [f"{first.path} is up to date: {source} is not read again"]
    assert (second.fingerprint, second.path.stat().st_ino) == (first.fingerprint, before)
    source.touch()  # another time, the same content
    prepared(source)
    assert len(prepared.said) == 1


def test_the_fingerprint_tells_content_not_places_or_times(prepared: Prepare, write_csv: Callable[..., Path], tmp_path: Path) -> None:
    source = write_csv(60)
    first = prepared(source)
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / "other_name.csv")
    assert prepared(moved).fingerprint == first.fingerprint
    assert prepared(moved, split_seed=5).fingerprint != first.fingerprint
    assert prepared(write_csv(60, seed=1)).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"sequence_len": 16}, "sequence_len 32 -> 16"),
        ({"long_texts": "truncate"}, "long_texts fold -> truncate"),
        ({"split": "60/20/20"}, "split 80/10/10 -> 60/20/20"),
        ({"split_seed": 3}, "split_seed 0 -> 3"),
        ({"stride": 4, "sequence_len": 16}, "sequence_len 32 -> 16, stride 0 -> 4"),
    ],
)
def test_other_settings_are_named_and_the_history_of_runs_is_kept(
    prepared: Prepare, write_csv: Callable[..., Path], settings: dict[str, Any], words: str
) -> None:
    source = write_csv(60, long_every=5)
    store = prepared(source)
    store.add_run({"run": "first"})
    again = prepared(source, **settings)
    assert prepared.said[0] == f"{store.path} is built again: {words}"
    assert again.fingerprint != store.fingerprint
    assert again.runs() == [{"run": "first"}]


def test_settings_that_name_what_was_found_change_nothing(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    prepared(source)
    prepared(source, text="text", label="label", delimiter=",", encoding="utf-8", header="yes", task_type="classification")
    assert prepared.said[0].endswith("is not read again")


def test_a_changed_source_and_another_tokenizer_are_named(prepared: Prepare, write_csv: Callable[..., Path], other_tokenizer: Path) -> None:
    source = write_csv(60)
    store = prepared(source)
    with open(source, "a", encoding="utf-8") as file:
        file.write("the dog loved this town,good\n")
    changed = prepared(source)
    assert prepared.said[0] == f"{store.path} is built again: {source} has changed"
    assert sum(changed.counts[split][0] for split in SPLITS) == 61
    prepared(source, model=str(other_tokenizer))
    assert prepared.said[0] == f"{store.path} is built again: tokenizer of {prepared.model} -> {other_tokenizer}"


def test_a_store_is_not_replaced_by_one_of_another_source(prepared: Prepare, write_csv: Callable[..., Path], tmp_path: Path) -> None:
    source, out = write_csv(60), tmp_path / "out"
    prepared(source, out)
    (tmp_path / "other").mkdir()
    other = write_csv(50, "other/leanings.csv", seed=1)
    beside = write_csv(50, "leanings.txt", seed=1)
    before = content_hash(out)
    for another in (other, beside, prepared(other).path):
        with pytest.raises(BadStore) as error:
            prepared(another, out)
        assert str(error.value) == (
            f"{out}/leanings.sqlite is the store of {source}, not of {another}: type another --output_dir, or remove that store."
        )
    assert content_hash(out) == before
    with sqlite3.connect(out / "leanings.sqlite") as connection:  # as an earlier version left it
        connection.execute("DELETE FROM about WHERE name = 'place'")
    with pytest.raises(BadStore, match=r"is the store of leanings\.csv, not of .*leanings\.txt: type another"):
        prepared(beside, out)
    shutil.copy(source, tmp_path / "other")  # the same texts elsewhere
    prepared(other, out)
    assert prepared.said[-1].endswith("is not read again")


def test_a_source_that_has_changed_after_it_was_moved_with_its_store_is_read_again(
    prepared: Prepare, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir()
    write_csv(60, "before/leanings.csv")
    prepared(tmp_path / "before" / "leanings.csv")
    (tmp_path / "before").rename(tmp_path / "after")
    source = write_csv(50, "after/leanings.csv")
    prepared(source)
    assert prepared.said[0] == f"{source.with_suffix('.sqlite')} is built again: {source} has changed"


def test_a_store_is_rebuilt_from_its_own_texts_when_the_source_is_gone(
    prepared: Prepare, write_csv: Callable[..., Path], other_tokenizer: Path, tmp_path: Path
) -> None:
    source = write_csv(60, long_every=5)
    expected = {length: all_samples(prepared(source, sequence_len=length)) for length in (32, 16)}
    fingerprint = prepared(source, sequence_len=16).fingerprint
    store = prepared(source)
    source.unlink()
    rebuilt = prepared(store.path, sequence_len=16)
    assert prepared.said[0].endswith("is built again: sequence_len 32 -> 16")
    assert all_samples(rebuilt) == expected[16] == expected[32]
    assert (rebuilt.fingerprint, rebuilt.rows("train").lengths.max()) == (fingerprint, 16)
    assert rebuilt.samples("test").lines.tolist() == store.samples("test").lines.tolist()
    again = prepared(source, model=str(other_tokenizer))  # the name of the source that is gone does as well
    assert prepared.said[0] == f"{source} is gone: its texts are taken from {store.path}"
    assert again.tokenizer_fingerprint != store.tokenizer_fingerprint
    prepared(store.path, model=str(other_tokenizer))
    assert prepared.said == [f"{store.path} is up to date: {source.name} is not read again"]


def test_a_store_cannot_be_read_in_another_way_than_it_was(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    store = prepared(write_csv(60))
    before = content_hash(store.path.parent)
    with pytest.raises(BadSource, match=r"--label author: .* was built with label, .*Name the file it came from \(leanings\.csv\)"):
        prepared(store.path, label="author")
    assert content_hash(store.path.parent) == before
    prepared(store.path, label="label")


def test_a_store_that_is_not_there_is_built_from_the_file_beside_it(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    store = prepared(source.with_suffix(".sqlite"))
    assert prepared.said[0] == f"{store.path} is not there yet: it is built from {source}"
    assert store.path.exists()


@pytest.mark.parametrize("others, words", [([], "Name the CSV file to build it from."), (["x.csv", "x.tsv"], "Name one of ")])
def test_a_store_that_is_not_there_with_nothing_plain_to_build_from_is_an_error(
    prepared: Prepare, tmp_path: Path, others: list[str], words: str
) -> None:
    for name in others:
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(BadSource, match=rf"x\.sqlite: there is no such store\. {words}"):
        prepared(tmp_path / "x.sqlite")


def test_an_output_folder_takes_the_store_and_a_store_is_copied_there(
    prepared: Prepare, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_csv(60)
    store = prepared(source, tmp_path / "out" / "deep")
    assert store.path == tmp_path / "out" / "deep" / "leanings.sqlite"
    copied = prepared(store.path, tmp_path / "second")
    assert prepared.said[0] == f"{tmp_path}/second/leanings.sqlite is a copy of {store.path}"
    assert copied.fingerprint == store.fingerprint
    prepared(store.path, tmp_path / "second")
    assert prepared.said == [f"{copied.path} is up to date: leanings.csv is not read again"]
    assert prepared(store.path, tmp_path / "third", sequence_len=16).rows("train").lengths.max() <= 16
    assert Store.open(store.path).fingerprint == store.fingerprint


def test_a_damaged_store_is_built_again_from_its_source_and_told(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    store = prepared(source)
    os.truncate(store.path, 5_000)
    again = prepared(source)
    assert "is cut short" in prepared.said[0]
    assert prepared.said[0].endswith("It is built again.")
    assert again.fingerprint == store.fingerprint
    os.truncate(store.path, 5_000)
    with pytest.raises(BadStore, match="is cut short"):
        prepared(store.path)


@pytest.mark.parametrize("content", [b"my notes", b""])
def test_a_foreign_file_in_the_place_of_the_store_is_not_lost(prepared: Prepare, write_csv: Callable[..., Path], content: bytes) -> None:
    source = write_csv(60)
    source.with_suffix(".sqlite").write_bytes(content)
    before = content_hash(source.parent)
    with pytest.raises(BadStore, match=r"It stands where the store of .* would go: move it away, or type --output_dir\."):
        prepared(source)
    assert content_hash(source.parent) == before


def test_duplicates_with_other_spaces_and_labels_are_kept_in_one_split(prepared: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    lines = [f"the same {'  ' * (number % 3)}text {number // 5},{'ab'[number % 2]}" for number in range(200)]
    source.write_text("text,label\n" + "\n".join(lines) + "\n")
    store = prepared(source)
    texts = [{" ".join(text.split()) for (text,) in store.texts(store.samples(split).ids)} for split in SPLITS]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert f"{source}: 160 samples repeat the text of another; equal texts are kept in one split" in prepared.said


def test_files_for_validation_and_test_are_their_splits_and_stay_so(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    train, validation, test = write_csv(100), write_csv(20, "validation.csv", seed=1), write_csv(30, "test.csv", seed=2)
    both = prepared(train, validation_file=str(validation), test_file=str(test))
    assert [both.counts[split][0] for split in SPLITS] == [100, 20, 30]
    assert both.texts(both.samples("test").ids[:1])[0][0] == test.read_text().splitlines()[1].rpartition(",")[0]
    one = prepared(train, test_file=str(test))
    assert [one.counts[split][0] for split in SPLITS] == [90, 10, 30]
    prepared(train, test_file=str(test))
    assert prepared.said[-1].endswith("is not read again")
    from_store = prepared(one.path, sequence_len=16, split_seed=1)
    assert [from_store.counts[split][0] for split in SPLITS] == [90, 10, 30]
    assert from_store.texts(from_store.samples("test").ids) == one.texts(one.samples("test").ids)
    assert from_store.samples("validate").ids.tolist() != one.samples("validate").ids.tolist()
    prepared(train, test_file=str(test), sequence_len=16, split_seed=1)
    assert prepared.said[-1].endswith("is not read again")


def test_texts_of_a_test_file_that_are_also_trained_on_are_told(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    train = write_csv(100)
    prepared(train, test_file=str(write_csv(100, "test.csv")))
    assert f"{train.with_name('test.csv')}: 100 of its texts also in {train}; both are given, so both stay" in prepared.said


def test_pairs_and_numbers_go_through_the_store(prepared: Prepare, tmp_path: Path) -> None:
    rng = random.Random(0)
    source = tmp_path / "pairs.tsv"
    lines = [f"the dog loved {number}\tthe cat hated this town\t{rng.random():.3f}" for number in range(50)]
    source.write_text("one\ttwo\tscore\n" + "\n".join(lines) + "\n")
    store = prepared(source, text="one", text_pair="two")
    assert (store.task_type, store.label_names) == ("regression", ())
    rows = store.rows("train")
    assert rows.targets.dtype == np.float64
    assert (rows.segments_at < rows.lengths).all()
    number = int(store.samples("train").ids[3])
    assert (*store.texts([number])[0], f"{rows.targets[3, 0]:.3f}") == tuple(lines[number].split("\t"))
    source.unlink()
    assert prepared(store.path, sequence_len=64, split_seed=1).task_type == "regression"


def test_labels_that_may_not_be_what_was_meant_are_told(prepared: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number},{('neg', 'NEG', 'NaN')[number % 3]}\n" for number in range(60)))
    prepared(source)
    assert any("'NEG', 'neg' differ in capital letters alone" in line for line in prepared.said)
    assert any("'NaN' is a class like the others" in line for line in prepared.said)
    source.write_text("text,label\n" + "".join(f"the dog {number // 2},{number % 40 // 2 * 2}\n" for number in range(80)))
    prepared(source)
    assert not any("--task_type" in line or "another label" in line for line in prepared.said)
    source.write_text("text,label\n" + "".join(f"the dog {number // 2},{number % 40}\n" for number in range(80)))
    prepared(source)
    assert f"{source}: All of the 40 labels are numbers: to learn numbers, not classes, type --task_type regression." in prepared.said
    assert f"{source}: 40 texts come again with another label, which no model can learn" in prepared.said


def test_what_was_left_out_is_told_with_lines(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    with open(source, "a", encoding="utf-8") as file:
        file.write(",good\nthe dog,\n")
    prepared(source)
    assert f"{source}: left out 1 line without text (62), 1 line without label (63)" in prepared.said


def test_fewer_bad_lines_allowed_than_a_store_has_is_an_error_that_keeps_it(prepared: Prepare, write_csv: Callable[..., Path]) -> None:
    source = write_csv(60)
    with open(source, "a", encoding="utf-8") as file:
        file.write(",good\n" * 4)
    prepared(source)
    before = content_hash(source.parent)
    with pytest.raises(BadSource, match=r"4 lines without text \(62, 63, 64, 65\), of 64, cannot be used; at most 1 % may be bad"):
        prepared(source, max_bad_rows=0.01)
    assert content_hash(source.parent) == before


BUILDER = """
import sys
from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
store = prepare(DataConfig(model=sys.argv[2], sequence_len=32), sys.argv[1])
print(store.fingerprint)
"""


def builder(source: Path, model: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(source), str(model)], stdout=subprocess.PIPE, text=True)


def test_of_many_processes_one_builds_and_the_others_wait_for_it(write_csv: Callable[..., Path], tiny_tokenizer: Path) -> None:
    source = write_csv(3_000)
    outputs = [child.communicate(timeout=120)[0].splitlines() for child in [builder(source, tiny_tokenizer) for _ in range(4)]]
    assert len({output[-1] for output in outputs}) == 1
    assert sum("3 000 samples (train" in "\n".join(output) for output in outputs) == 1
    assert sum("is up to date" in output[-2] for output in outputs) == 3
    assert {path.name for path in source.parent.iterdir()} == {source.name, "leanings.sqlite"}


def test_killed_builders_leave_nothing_that_could_be_taken_for_a_store(write_csv: Callable[..., Path], tiny_tokenizer: Path) -> None:
    source = write_csv(20_000, "leanings[1].csv")
    rng = random.Random(0)
    for _ in range(5):
        child = builder(source, tiny_tokenizer)
        deadline = time.monotonic() + 60
        while not list(source.parent.glob(".*.part")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if source.with_suffix(".sqlite").exists():
            break
    store = prepare(DataConfig(model=str(tiny_tokenizer), sequence_len=32), str(source), say=lambda line: None)
    assert sum(store.counts[split][0] for split in SPLITS) == 20_000
    assert {path.name for path in source.parent.iterdir()} == {source.name, "leanings[1].sqlite"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_builder_that_is_asked_to_end_leaves_nothing(
    number: signal.Signals, write_csv: Callable[..., Path], tiny_tokenizer: Path
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("under nohup, which a child inherits")
    source = write_csv(100_000)
    command = [sys.executable, "-m", "bert_train_parallel", str(source), "-p", "--model", str(tiny_tokenizer)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while not list(source.parent.glob(".*.part")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        for _ in range(2 if number != signal.SIGINT else 1):  # a group and its member are often told both
            child.send_signal(number)
        said = child.communicate(timeout=60)[1]
    assert said == f"bert_train_parallel: stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}.\n"
    assert child.returncode == 128 + number
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_who_handles_signals_is_left_to(tmp_path: Path) -> None:
    heard = list[int]()
    earlier = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with only_builder(tmp_path / "x.sqlite"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_signals_end_the_process_again_once_a_store_is_built(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(StoppedBySignal, match=r"stopped by SIGTERM\.") as error, only_builder(tmp_path / "x.sqlite"):
        signal.raise_signal(signal.SIGTERM)
    assert error.value.exit_code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    assert list(tmp_path.iterdir()) == []


def test_a_finished_store_is_enough_in_a_read_only_folder(prepared: Prepare, write_csv: Callable[..., Path], disk: Any) -> None:
    source = Path(shutil.move(write_csv(60), disk.folder))
    store = prepared(source)
    disk.make_read_only()
    assert prepared(source).fingerprint == store.fingerprint
    with pytest.raises(
        NotWritable, match=r"leanings\.sqlite: read-only file system\. Make it writable, or name another place with --output_dir"
    ):
        prepared(source, sequence_len=16)
    assert Store.open(store.path).fingerprint == store.fingerprint


def test_a_full_disk_is_one_sentence_and_the_store_that_was_there_stays(
    prepared: Prepare, write_csv: Callable[..., Path], disk: Any
) -> None:
    prepared(write_csv(60), disk.folder)
    source = write_csv(10_000, long_every=20)
    before = content_hash(disk.folder)
    with pytest.raises(
        NotWritable, match=r"leanings\.sqlite: no space left on device\. Free some, or name another place with --output_dir"
    ):
        prepared(source, disk.folder)
    assert content_hash(disk.folder) == before


def test_who_waits_for_a_lock_makes_the_folder_anew_that_the_one_before_has_taken_away(tmp_path: Path) -> None:
    store = tmp_path / "n1" / "n2" / "x.sqlite"
    waits, found = threading.Event(), list[bool]()

    def second() -> None:
        with only_builder(store, waits.set):
            found.append(store.parent.is_dir())

    waiting = threading.Thread(target=second)
    with only_builder(store):
        waiting.start()
        assert waits.wait(10)
    waiting.join(10)
    assert found == [True]
    assert list(tmp_path.iterdir()) == []
