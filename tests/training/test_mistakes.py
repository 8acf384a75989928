"""A user's mistake is one line that says what to type; exit 2, no traceback, nothing changed on the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training import worlds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where ranks print, apart from the data."""
    place = tmp_path / "printed"
    place.mkdir()
    return place


def hash_of(source: Path) -> str:
    """All that lies beside a source under its name."""
    found = hashlib.sha256()
    for path in sorted(source.parent.rglob("leanings*")):
        found.update(str(path.relative_to(source.parent)).encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def assert_refused(world: worlds.TestWorld, *words: str) -> None:
    assert world.wait() == [2] * len(world.processes), world.output()
    said = [line for line in world.output(0).splitlines() if line.startswith("bert_train_parallel: ")]
    assert len(said) == 1, world.output()
    for word in words:
        assert word in said[0]
    assert "Traceback" not in world.output()


MISTAKES = {
    "metric": (("--metric", "pearson"), ("--metric pearson", "macro_f1")),
    "class weight": (("--class_weights", '{"goood": 2}'), ("--class_weights", "good")),
    "shares": (("--shares", "3,1,1"), ("--shares 3,1,1", "1 rank")),
    "half precision without a GPU": (("--dtype", "float16"), ("--dtype float16", "bfloat16")),
    "no GPU": (("--device", "cuda"), ("--device cuda", "--device cpu")),
    "no earlier run": (("--from_run", "nowhere_RESULT.json"), ("--from_run nowhere_RESULT.json",)),
    "name of the run": (("--run", "a/b"), ("--run", "a/b")),
    "number": (("--batch_size", "0"), ("--batch_size", "0")),
    "word": (("--schedule", "cubic"), ("--schedule", "cubic")),
    "settings file": (("--config", "nowhere.json"), ("nowhere.json", "no such file")),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting(mistake: str, write_csv: Callable[..., Path], tiny_model: Path, folder: Path) -> None:
    if mistake == "no GPU" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    flags, words = MISTAKES[mistake]
    source = write_csv(60)
    worlds.run_world(1, source, "--model", tiny_model, "--preponly", folder=folder)
    before = hash_of(source)
    assert_refused(worlds.start_world(1, source, "--model", tiny_model, *flags, folder=folder), *words)
    assert hash_of(source) == before


@pytest.mark.slow
def test_an_unknown_setting_in_a_file(write_csv: Callable[..., Path], tiny_model: Path, folder: Path) -> None:
    source = write_csv(60)
    settings = source.with_name("settings.json")
    settings.write_text('{"epoch": 2}')
    assert_refused(
        worlds.start_world(1, source, "--model", tiny_model, "--config", settings, folder=folder), "settings.json", '"epoch"', "epochs"
    )


@pytest.mark.slow
def test_a_model_without_weights_is_said_once_by_a_world_of_two(write_csv: Callable[..., Path], tiny_tokenizer: Path, folder: Path) -> None:
    source = write_csv(60)
    world = worlds.start_world(2, source, "--model", tiny_tokenizer, folder=folder)
    assert_refused(world, "has no weights", "model.safetensors")
    assert not list(source.parent.glob("leanings_*"))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Makes a folder read-only, for root too."""
    mounted: list[Path] = []

    def make(place: Path) -> Path:
        if os.getuid():
            place.chmod(0o555)
        else:
            for options in ("bind", "bind,remount,ro"):
                if subprocess.run(["mount", "-o", options, place, place], check=False).returncode:
                    pytest.skip("a read-only mount is not allowed here")
            mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=False)
        subprocess.run(["umount", "-l", place], check=False)


@pytest.mark.slow
def test_a_read_only_folder(
    write_csv: Callable[..., Path], tiny_model: Path, folder: Path, tmp_path: Path, read_only: Callable[[Path], Path]
) -> None:
    source = write_csv(60)
    worlds.run_world(1, source, "--model", tiny_model, "--preponly", folder=folder)
    data = tmp_path / "data"
    data.mkdir()
    for path in tmp_path.glob("leanings.*"):
        path.rename(data / path.name)
    read_only(data)
    world = worlds.start_world(1, data / "leanings.csv", "--model", tiny_model, "--max_steps", "2", folder=folder)
    assert_refused(world, str(data), "--output_dir")
    flags = ("--max_steps", "2", "--output_dir", tmp_path / "results", "--no_export")
    worlds.run_world(1, data / "leanings.csv", "--model", tiny_model, *flags, folder=folder)
    assert (tmp_path / "results" / "leanings_RESULT.json").exists()


@pytest.mark.slow
def test_a_model_without_weights_leaves_the_folder_as_it_was(write_csv: Callable[..., Path], tiny_tokenizer: Path, folder: Path) -> None:
    source = write_csv(60)
    before = hash_of(source)
    assert_refused(worlds.start_world(1, source, "--model", tiny_tokenizer, folder=folder), "has no weights")
    assert hash_of(source) == before
