"""Predictions of texts, whatever they are batched with, folded and combined as the model was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_train_parallel.errors import BadModel, BadSetting, BadSource
from bert_train_parallel.predict import predictor as module
from bert_train_parallel.predict.predictor import Prediction, Predictor, load_model, windows
from bert_train_parallel.run_files import RunFiles

TEXTS = [
    "the dog loved the long film",
    "a small cat hated a cold soup. " * 9,
    "x",
    "my neighbor",
    "her brother insulted an honest answer and then it was praised by the old senator. " * 3,
]


def chances(predictions: list[Prediction]) -> np.ndarray:
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])


def test_a_text_has_the_same_prediction_alone_and_among_others(run: RunFiles) -> None:
    predictor = load_model(run.folder, device="cpu")
    together = predictor.predict(TEXTS)
    alone = [predictor.predict([text])[0] for text in TEXTS]
    np.testing.assert_allclose(chances(together), chances(alone), atol=1e-6)
    assert [prediction.label for prediction in together] == [prediction.label for prediction in alone]
    np.testing.assert_allclose(chances(together).sum(axis=1), 1, atol=1e-9)


def test_the_likeliest_label_is_the_prediction(run: RunFiles) -> None:
    for prediction in load_model(run.folder).predict(TEXTS):
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_changes_nothing(run: RunFiles, batch_size: int) -> None:
    expected = chances(load_model(run.folder).predict(TEXTS))
    np.testing.assert_allclose(chances(load_model(run.folder, batch_size=batch_size).predict(TEXTS)), expected, atol=1e-6)


def test_windows_change_nothing_and_hold_few_texts(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load_model(run.folder)
    expected = chances(predictor.predict(TEXTS * 3))
    monkeypatch.setattr(module, "_WINDOW_TEXTS", 4)
    monkeypatch.setattr(module, "_WINDOW_CHARACTERS", 300)
    np.testing.assert_allclose(chances(predictor.predict(TEXTS * 3)), expected, atol=1e-6)
    parts = list(windows((text,) for text in TEXTS * 3))
    assert [text for window in parts for (text,) in window] == TEXTS * 3
    assert all(len(window) <= 4 and sum(len(text) for (text,) in window[:-1]) <= 300 for window in parts)


def test_predictions_come_before_the_input_has_ended(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW_TEXTS", 2)
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield "the dog"

    stream = load_model(run.folder).stream(endless())
    assert next(stream).label is not None
    assert asked == 2


@pytest.mark.parametrize("combine", ["mean", "vote", "max"])
def test_long_texts_are_combined_as_in_training(save_run: Callable[..., RunFiles], combine: str) -> None:
    predictor = load_model(save_run(combine=combine).folder)
    rows = predictor._rows([(TEXTS[1],)])
    assert len(rows) > 1
    expected = predictor._task.combine(predictor._outputs(rows), rows, combine).probabilities
    np.testing.assert_allclose(chances(predictor.predict([TEXTS[1]])), expected, atol=1e-6)


def test_truncated_texts_are_truncated_as_in_training(save_run: Callable[..., RunFiles]) -> None:
    predictor = load_model(save_run(long_texts="truncate").folder)
    short = predictor.predict([TEXTS[1]])
    np.testing.assert_allclose(chances(short), chances(predictor.predict([TEXTS[1] + " and more " * 50])), atol=1e-6)


def test_a_regression_predicts_a_number(save_run: Callable[..., RunFiles]) -> None:
    (prediction,) = load_model(save_run(task_type="regression").folder).predict(["the dog"])
    assert prediction.label is None
    assert prediction.probabilities == {}
    assert isinstance(prediction.value, float)


def test_a_model_of_pairs_takes_two_texts(save_run: Callable[..., RunFiles]) -> None:
    predictor = load_model(save_run(text_pair="second").folder)
    first, turned = predictor.predict([("the dog loved it", "a cat"), ("a cat", "the dog loved it")])
    assert first.probabilities != turned.probabilities
    with pytest.raises(BadSource, match="Text 1: two texts are expected, as in training; 1 given"):
        predictor.predict(["the dog"])


@pytest.mark.parametrize("empty", ["", "   ", "\n\t\u3000"])
def test_an_empty_text_is_named_by_its_number(run: RunFiles, empty: str) -> None:
    with pytest.raises(BadSource, match="Text 2 is empty"):
        load_model(run.folder).predict(["the dog", empty])


def test_half_a_surrogate_pair_is_a_text_like_any_other(run: RunFiles) -> None:
    assert len(load_model(run.folder).predict(["a broken emoji \ud83d here", "a whole one \U0001f600"])) == 2


def test_a_device_that_is_not_here_says_which_are(run: RunFiles) -> None:
    import torch

    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(BadSetting, match=f"--device {missing}: there is none here. Use .*cpu"):
        load_model(run.folder, device=missing)


def test_bfloat16_is_near_float32(run: RunFiles) -> None:
    expected = chances(load_model(run.folder, dtype="float32").predict(TEXTS))
    np.testing.assert_allclose(chances(load_model(run.folder, dtype="bfloat16").predict(TEXTS)), expected, atol=0.02)


@pytest.mark.parametrize("capabilities, found", [({"avx512_bf16": True}, "bfloat16"), ({"avx512_f": True}, "float32"), ({}, "float32")])
def test_a_model_of_a_gpu_is_predicted_in_float32_on_a_cpu_that_is_slower_in_bfloat16(
    save_run: Callable[..., RunFiles], monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], found: str
) -> None:
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: capabilities)
    predictor = load_model(save_run(dtype="bfloat16").folder, device="cpu")
    assert predictor._dtype == found
    assert module.precision_for("bfloat16", "float32", "cpu") == "bfloat16"  # what is asked for is done
    assert predictor.predict(["the dog"])


def test_a_metal_gpu_is_asked_for_no_float64(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(BadSetting, match="--dtype float64: a Metal GPU has no such arithmetic"):
        load_model(run.folder, device="mps", dtype="float64")
    # what comes from the device is float32 until it is on the CPU
    predictor = load_model(run.folder, device="cpu")
    asked: list[str] = []

    class OnMetal:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return lambda *_: np.zeros((1, 2)) if name == "numpy" else self

    monkeypatch.setattr(module, "outputs_of", lambda *_: [OnMetal()])
    monkeypatch.setattr(module.torch, "cat", lambda outputs: outputs[0])
    predictor.predict(["the dog"])
    assert asked == ["cpu", "double", "numpy"]


@pytest.mark.parametrize("dtype", module.DTYPES)
def test_a_model_of_any_precision_predicts_in_any_other(save_run: Callable[..., RunFiles], dtype: str) -> None:
    from dataclasses import replace

    from bert_train_parallel.models.export import load_saved

    saved = load_saved(save_run(dtype="float64").saved_model)
    exact = chances(Predictor(replace(saved, model=saved.model.double()), "cpu").predict(TEXTS))
    found = chances(Predictor(replace(saved, model=saved.model.double()), "cpu", dtype).predict(TEXTS))
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_a_broken_tokenizer_is_a_bad_model(run: RunFiles) -> None:
    from dataclasses import replace

    from bert_train_parallel.models.export import load_saved

    with pytest.raises(BadModel, match=r"The model's tokenizer.json cannot be read"):
        Predictor(replace(load_saved(run.saved_model), tokenizer='{"model": 3}'))


def test_the_folder_predicts_what_the_file_predicts(run: RunFiles) -> None:
    by_file, by_folder = (load_model(path).predict(TEXTS) for path in (run.saved_model, run.model_folder))
    assert chances(by_file).tolist() == chances(by_folder).tolist()


def test_texts_of_the_test_predictions_get_their_labels_again(tiny_model: Path, write_csv: Callable[..., Path]) -> None:
    import csv

    from bert_train_parallel.data.store import Store
    from bert_train_parallel.training.api import train

    source = write_csv(160, long_every=8)
    train(source, model=str(tiny_model), epochs=1, batch_size=16, learning_rate=5e-3, sequence_len=32, quiet_progress=True, quiet=True)
    files = RunFiles(source.parent, "leanings")
    with open(files.predictions, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    with Store.open(source.with_suffix(".sqlite")) as store:
        texts = store.texts([int(line["sample"]) for line in lines])
    assert len(lines) == 16
    for part in (files.saved_model, files.model_folder, files.result):
        found = load_model(part, device="cpu").predict(text for (text,) in texts)
        assert [prediction.label for prediction in found] == [line["prediction_name"] for line in lines]
        expected = [[float(line[f"probability_{label}"]) for label in found[0].probabilities] for line in lines]
        np.testing.assert_allclose(chances(found), expected, atol=1e-5)


@pytest.mark.parametrize("texts", ["one text", b"bytes", [None], [3], [b"bytes"], [("the dog", None)]])
def test_what_is_no_list_of_texts_is_refused(run: RunFiles, texts: Any) -> None:
    with pytest.raises(BadSource, match="expected"):
        load_model(run.folder).predict(texts)


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"batch_size": 0}, {"batch_size": -1}])
def test_a_setting_that_cannot_be_is_refused(run: RunFiles, settings: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="is expected"):
        load_model(run.folder, **settings)
