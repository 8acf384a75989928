"""A user's mistake is one line that says what to type; exit 2, no traceback, nothing changed on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data.conftest import content_hash

from bert_train_parallel import prepare
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.training.cli import main
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


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A source whose labels are numbers with fractions."""
    source = tmp_path / "leanings.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number},{number / 7:.2f}\n" for number in range(40)))
    return source


@pytest.fixture
def odd_model(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A model folder with something wrong: `config` is missing, or it is of a `kind` without a classifier."""

    def make(what: str) -> Path:
        place = tmp_path / "odd"
        shutil.copytree(tiny_model, place)
        config = place / "config.json"
        if what == "config":
            config.unlink()
        else:
            config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "vit", "architectures": ["ViTModel"]}))
        return place

    return make


# what is wrong with a setting, by the flags; and whether it is known before the source is read
REFUSED = {
    "a figure of numbers for classes": (["--metric", "pearson"], "--metric pearson is not a figure of a classification", False),
    "the same, where the task is named": (
        ["--metric", "pearson", "--task_type", "classification"],
        "--metric pearson is not a figure of a classification",
        True,
    ),
    "weights of classes for numbers, by name": (["--class_weights", "balanced", "--task_type", "regression"], "not classes", True),
    "a class that is not there": (["--class_weights", '{"goood": 2}'], "there is no label 'goood'. Did you mean 'good'?", False),
    "no class counts": (["--class_weights", '{"good": 0, "bad": 0}'], "every class has the weight 0", False),
    "words to be learned as numbers": (["--task_type", "regression"], "the first 60 labels are none (column 'label', such as ", True),
    "shares of more ranks": (["--shares", "3,1"], "--shares 3,1 has 2 numbers", True),
    "a device that is not here": (["--device", "mps"], "--device mps: torch sees no Metal GPU", True),
    "a precision that the device lacks": (["--device", "cpu", "--dtype", "float16"], "--dtype float16 needs a CUDA GPU", True),
    "an earlier run that is not there": (["--from_run", "nowhere_RESULT.json"], "--from_run nowhere_RESULT.json: there is no", True),
}


@pytest.mark.parametrize("has_store", [False, True], ids=["no store", "a store for other settings"])
@pytest.mark.parametrize("mistake", REFUSED)
def test_a_setting_is_refused_before_a_store_is_made_or_replaced(
    mistake: str, has_store: bool, write_csv: Callable[..., Path], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words, at_once = REFUSED[mistake]
    source = write_csv(60)
    if has_store:
        prepare(source, model=str(tiny_model), sequence_len=64, quiet=True).close()
    before = content_hash(source.parent)
    assert main([str(source), "--model", str(tiny_model), *flags]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert words in said.err
    assert content_hash(source.parent) == before
    # how the file is read is told when it is opened to be read
    assert ("comma-separated" not in said.out) == at_once


@pytest.mark.parametrize("flags", [["--metric", "accuracy"], ["--class_weights", "balanced"]])
def test_a_setting_of_classes_is_refused_where_the_labels_turn_out_to_be_numbers(
    flags: list[str], numbers: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_hash(numbers.parent)
    assert main([str(numbers), "--model", str(tiny_model), *flags]) == 2
    assert flags[0] in capsys.readouterr().err
    assert content_hash(numbers.parent) == before


@pytest.mark.parametrize(
    "what, words", [("config", "odd has no config.json"), ("kind", "of the kind 'vit', for which transformers has no")]
)
def test_a_folder_of_no_classifier_is_refused_before_the_source_is_read(
    what: str, words: str, odd_model: Callable[[str], Path], write_csv: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = write_csv(60), odd_model(what)
    before = content_hash(source.parent)
    assert main([str(source), "--model", str(model)]) == 2
    assert words in capsys.readouterr().err
    assert content_hash(source.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--sequence_len", "32"], "differs in the data"),
        (["--epochs", "2"], "differs in epochs (was 1, is now 2)"),
        (["--max_bad_rows", "0.5", "--split", "60/20/20"], "differs in the data"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_to_go_on_with_keeps_its_store_when_other_settings_are_refused(
    flags: list[str], words: str, finished: bool, write_csv: Callable[..., Path], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(60, long_every=6)
    settings = ["--model", str(tiny_model), "--device", "cpu", "--no_export", "--sequence_len", "64"]
    assert main([str(source), *settings, "--epochs", "1"]) == 0
    if not finished:
        RunFiles(source.parent, "leanings").result.unlink()
    before = content_hash(source.parent)
    capsys.readouterr()
    assert main([str(source), *settings, "--epochs", "1", "--resume", *flags]) == 2
    assert words in capsys.readouterr().err
    assert content_hash(source.parent) == before


@pytest.mark.slow
def test_a_model_without_weights_leaves_the_folder_as_it_was(write_csv: Callable[..., Path], tiny_tokenizer: Path, folder: Path) -> None:
    source = write_csv(60)
    before = hash_of(source)
    assert_refused(worlds.start_world(1, source, "--model", tiny_tokenizer, folder=folder), "has no weights")
    assert hash_of(source) == before
