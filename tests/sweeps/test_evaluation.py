"""Measuring a run's model, and using it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_nvml
import pytest

from bert_train_parallel import gpus
from bert_train_parallel.errors import BadGpuMap, BadRun
from bert_train_parallel.launching.plan import LaunchRequest, LaunchResult, Node, WorldPlan
from bert_train_parallel.models.reading import READING
from bert_train_parallel.run_files import RunFiles
from bert_train_parallel.sweeps import messages as m
from bert_train_parallel.sweeps.evaluation import check_length, infer, inference_of, reading_of
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.keys import keep_asked
from bert_train_parallel.sweeps.run_facts import num_parameters


@pytest.mark.parametrize(
    ("schema", "columns"),
    [
        (None, ("tweet", "mood")),  # of a file: nothing is known of its columns
        ({"tweet": "column", "mood": "column"}, ("tweet", "mood")),
        ({"text": "column", "label": "column"}, (None, None)),
    ],
)
def test_other_data_is_read_by_the_columns_that_the_training_named(
    schema: dict[str, str] | None, columns: tuple[str | None, str | None], tmp_path: Path
) -> None:
    folder = SharedFolder(tmp_path)
    config = m.BertFineTuneConfig(text_field="tweet", label_field="mood", max_seq_length=64, validation_file="elsewhere.csv")
    keep_asked(folder, "key", m.BertFineTuneRequest(run_id="mine", config=config))
    snapshot = m.DatasetSnapshotResult(
        snapshot_id="s",
        dataset_name="other.csv",
        num_train_samples=1,
        data_hash="0",
        snapshot_timestamp="",
        snapshot_path="s",
        dataset_schema=schema,
        files={"train": "other.csv"},
    )
    found = reading_of(RunFiles(folder.run("mine"), "leanings"), snapshot, folder)
    assert (found.text, found.label, found.sequence_len, found.validation_file) == (*columns, 64, None)


def test_a_number_of_tokens_is_taken_only_if_it_is_that_of_the_training() -> None:
    result = {"settings": {"sequence_len": 64}}
    check_length(None, result)
    check_length(64, result)
    with pytest.raises(BadRun, match="max_seq_length 128: this model was trained to read 64 tokens"):
        check_length(128, result)


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    files = RunFiles(tmp_path, "leanings")
    assert num_parameters(files) is None
    files.model_folder.mkdir()
    tensors = {
        "weight": torch.zeros(3, 4),
        "bias": torch.zeros(3, dtype=torch.bfloat16),
        "position_ids": torch.zeros(1, 9, dtype=torch.int64),
    }
    save_file(tensors, files.model_folder / "model.safetensors")
    assert num_parameters(files) == 15


@dataclass
class Launches:
    """Stands in for launches of the predict command: what they were told, and a GPU that they find held while they last."""

    devices: list[tuple[str, str | None]] = field(default_factory=list)
    under_way: int = 0

    async def launch(
        self, request: LaunchRequest, output: Path, tick: Any, *, held: Sequence[int] = (), environment: Mapping[str, str] | None = None
    ) -> LaunchResult:
        words = request.command
        assert words[words.index("--device") + 1] == request.device
        assert len(held) == (request.device == "cuda")
        self.devices.append((request.device, (environment or {}).get("CUDA_VISIBLE_DEVICES")))
        self.under_way += 1
        while self.under_way < 2:  # two at once
            await asyncio.sleep(0.001)
        with pytest.raises(BadGpuMap, match="other launches hold 1 of the 1 GPU"):
            gpus.claim(1)
        Path(words[words.index("--output") + 1]).write_text(json.dumps({"prediction": "left", "probabilities": {"left": 1.0}}))
        return LaunchResult(WorldPlan((Node("here", 1),)), 0)


def test_a_model_is_used_on_a_gpu_that_no_launch_holds_at_that_moment_else_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml.use(tmp_path, monkeypatch, [{"uuid": "GPU-aa", "bus": "1", "used": 0, "busy": 0}])
    folder, made = SharedFolder(tmp_path), Launches()
    monkeypatch.setattr("bert_train_parallel.sweeps.launches.launch", made.launch)
    files = RunFiles(folder.run("mine"), "leanings")
    files.model_folder.mkdir(parents=True)
    files.result.write_text(json.dumps({"settings": {"sequence_len": 64}, "label_names": ["left", "right"]}))

    async def both(use_gpu: bool) -> list[str | None]:
        request = m.BertInferenceRequest(run_id="mine", texts=["Vote!"], use_gpu=use_gpu)
        made.devices.clear()
        made.under_way = 0
        for found in await asyncio.gather(*(infer(request, folder, lambda: None) for _ in range(2))):
            assert found.label_names == ["left"]
        return sorted(gpu or device for device, gpu in made.devices)

    assert asyncio.run(both(True)) == ["GPU-aa", "cpu"]
    assert asyncio.run(both(True)) == ["GPU-aa", "cpu"]  # it was given back
    trial = gpus.claim(1)
    assert asyncio.run(both(True)) == ["cpu", "cpu"]
    assert asyncio.run(both(False)) == ["cpu", "cpu"]
    trial.release()


def save_reading(folder: SharedFolder, run_id: str, text_pair: str | None) -> RunFiles:
    """A run that has ended, with nothing of its model but how it reads texts."""
    files = RunFiles(folder.run(run_id), "leanings")
    files.model_folder.mkdir(parents=True)
    (files.model_folder / READING).write_text(json.dumps({"text_pair": text_pair}))
    files.result.write_text(json.dumps({"settings": {"sequence_len": 64}, "label_names": ["left", "right"]}))
    return files


def test_a_model_of_pairs_is_given_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SharedFolder(tmp_path)
    save_reading(folder, "pair", "second")
    given: list[str] = []

    async def launch(request: LaunchRequest, *more: Any, **options: Any) -> LaunchResult:
        words = request.command
        assert words[words.index("--text_pair") + 1] == "text_pair"
        given.append(next(Path(word) for word in words if word.endswith("texts.jsonl")).read_text())
        Path(words[words.index("--output") + 1]).write_text(json.dumps({"prediction": "left", "probabilities": {"left": 1.0}}) + "\n")
        return LaunchResult(WorldPlan((Node("here", 1),)), 0)

    monkeypatch.setattr("bert_train_parallel.sweeps.launches.launch", launch)
    found = asyncio.run(infer(inference_of("pair", ["Vote!", "Now!"], folder), folder, lambda: None))
    assert (found.label_names, found.texts, found.text_pairs) == (["left"], ["Vote!"], ["Now!"])
    assert [json.loads(line) for line in given] == [{"text": "Vote!", "text_pair": "Now!"}]


@pytest.mark.parametrize(
    ("run_id", "texts", "pairs", "words"),
    [
        ("pair", ["Vote!"], None, "pair was trained on pairs of texts: text_pairs is to have the second text of each of texts"),
        ("single", ["Vote!"], ["Now!"], "single was trained on single texts, not on pairs"),
        ("pair", ["Vote!", "Win!"], ["Now!", " "], "Text 2 is empty"),
        ("single", ["Vote!", ""], None, "Text 2 is empty"),
    ],
)
def test_texts_that_a_model_cannot_read_are_refused_with_the_reason(
    tmp_path: Path, run_id: str, texts: list[str], pairs: list[str] | None, words: str
) -> None:
    folder = SharedFolder(tmp_path)
    save_reading(folder, "pair", "second")
    save_reading(folder, "single", None)
    with pytest.raises(BadRun, match=words):
        asyncio.run(infer(m.BertInferenceRequest(run_id=run_id, texts=texts, text_pairs=pairs), folder, lambda: None))
    with pytest.raises(BadRun, match="give two for each prediction, and not 3 texts in all"):
        inference_of("pair", ["Vote!", "Now!", "Win!"], folder)
    with pytest.raises(ValueError, match="text_pairs: 1 for 2 texts"):
        m.BertInferenceRequest(run_id=run_id, texts=["a", "b"], text_pairs=["c"])
