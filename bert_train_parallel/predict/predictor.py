"""Texts to labels with a trained model: folded, packed and combined as in training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bert_train_parallel.data.batches import FloatArray, Rows, batches_by_length
from bert_train_parallel.data.folding import fold_texts
from bert_train_parallel.data.tokenizing import TextTokenizer
from bert_train_parallel.errors import BadModel, BadSetting, BadSource
from bert_train_parallel.models.export import TOKENIZER, SavedModel, load_saved
from bert_train_parallel.models.inference import HALF, autocast, batch_tokens, outputs_of
from bert_train_parallel.models.matmul import choose_matmul, use_matmul
from bert_train_parallel.run_files import name_given
from bert_train_parallel.tasks.task import Task, task_of

Text = str | tuple[str, str]  # a pair for a model that was trained on pairs

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_WINDOW_TEXTS, _WINDOW_CHARACTERS = 4096, 4_000_000  # of texts whose rows are sorted by length together


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one text."""

    label: str | None  # None for a regression
    probabilities: dict[str, float]  # of each label, in the order of the model's outputs; empty for a regression
    value: float | None = None  # of a regression


class Predictor:
    """A trained model, ready to predict; `load_model` makes one."""

    def __init__(self, saved: SavedModel, device: str = "auto", dtype: str = "auto", batch_size: int | None = None) -> None:
        """Puts the model on its device.

        Args:
            device: auto, cuda, mps or cpu.
            dtype: auto: the one it was trained in, or float32 where this device has no fast arithmetic of that kind.
            batch_size: rows per forward pass, as long as rows may be; None: as many as training evaluates at once.
        Raises:
            BadSetting: a device that is not here, or a value that cannot be.
        """
        self._device = _device_for(device, dtype, batch_size)
        self.saved = saved
        self._dtype = precision_for(dtype, saved.reading.dtype, self._device.type)
        # one after the other: a Metal GPU cannot hold what still is float64
        self._model = saved.model.to(torch.float64 if self._dtype == "float64" else torch.float32).to(self._device)
        if self._dtype not in HALF:
            use_matmul(self._model, choose_matmul("auto", self._model).library)
        self._tokens = batch_size * saved.reading.sequence_len if batch_size else batch_tokens(self._device)
        self._tokenizer = _tokenizer(saved.tokenizer)
        self._task: Task = task_of(saved.reading.task_type)

    def predict(self, texts: Iterable[Text]) -> list[Prediction]:
        """A prediction for each text, in order.

        Raises:
            BadSource: a text without any character but white space, one text where the model takes pairs, or what is no text.
        """
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Text | tuple[str, ...]]) -> Iterator[Prediction]:
        """As `predict`, one by one; at no time are more than some thousands of texts in memory."""
        for window in windows(self._checked(texts)):
            yield from self._predict_window(window)

    def _checked(self, texts: Iterable[Text | tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        pairs = self.saved.reading.text_pair is not None
        if isinstance(texts, str | bytes):
            raise BadSource('One text is given where several are expected: write ["..."] for a list of one.')
        for number, text in enumerate(texts, 1):
            parts = (text,) if not isinstance(text, tuple | list) else tuple(text)
            if not all(isinstance(part, str) for part in parts):
                raise BadSource(f"Text {number} is a {type(text).__name__}; a text is expected.")
            if len(parts) != (2 if pairs else 1):
                raise BadSource(
                    f"Text {number}: {'two texts are' if pairs else 'one text is'} expected, as in training; {len(parts)} given."
                )
            if not all(part.strip() for part in parts):
                raise BadSource(f"Text {number} is empty. Give one with words in it.")
            yield tuple(part if part.isascii() else part.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for part in parts)

    def _predict_window(self, texts: Sequence[tuple[str, ...]]) -> list[Prediction]:
        rows = self._rows(texts)
        predictions = self._task.combine(self._outputs(rows), rows, self.saved.reading.combine)
        if predictions.probabilities is None:
            return [Prediction(None, {}, value) for value in predictions.predicted.tolist()]
        names = self.saved.label_names
        return [
            Prediction(names[code], dict(zip(names, chances, strict=True)))
            for code, chances in zip(predictions.predicted.tolist(), predictions.probabilities.tolist(), strict=True)
        ]

    def _rows(self, texts: Sequence[tuple[str, ...]]) -> Rows:
        folded = fold_texts(texts, self._tokenizer, self.saved.reading)
        return Rows(
            tokens=folded.tokens,
            offsets=folded.offsets,
            segments_at=folded.segments_at,
            sample=folded.sample,
            targets=np.zeros((len(folded), 1), dtype=np.int64),  # unknown, and read by nothing
            weights=np.ones(len(folded)),
        )

    def _outputs(self, rows: Rows) -> FloatArray:
        """(N, k) in the order of the rows."""
        found = np.zeros((len(rows), self._model.config.num_labels))
        with torch.inference_mode(), autocast(self._device, self._dtype):
            for numbers in batches_by_length(rows.lengths, self._tokens):
                found[numbers] = torch.cat(outputs_of(self._model, rows, numbers, self._device)).cpu().double().numpy()
        return found


def load_model(path: str | Path, device: str = "auto", dtype: str = "auto", batch_size: int | None = None) -> Predictor:
    """A trained model by its `.sav` file, its folder, the folder of its run, or any file of its run.

    `load_model("leanings_trained_model.sav").predict(["What a day!"])[0].label`

    Raises:
        BadModel: there is none, or it is damaged.
        BadSetting: a device that is not here, or a value that cannot be.
    """
    path = name_given(path, "model", "a _trained_model.sav file, a model folder, or any file of a run", BadModel)
    _device_for(device, dtype, batch_size)  # told before the model is read
    return Predictor(load_saved(path), device, dtype, batch_size)


def windows(texts: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Texts in lists of some thousands, or fewer where they are long."""
    window: list[tuple[str, ...]] = []
    characters = 0
    for parts in texts:
        window.append(parts)
        characters += sum(map(len, parts))
        if len(window) == _WINDOW_TEXTS or characters > _WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def precision_for(asked: str, trained: str, device: str) -> str:
    """The precision to predict in on a kind of device; auto: as the model was trained. Else float32, which is never less exact.

    >>> precision_for("auto", "bfloat16", "cuda"), precision_for("auto", "float64", "mps"), precision_for("float16", "float32", "cpu")
    ('bfloat16', 'float32', 'float32')
    """
    dtype = trained if asked == "auto" else asked
    if device == "cpu":
        is_slow = dtype == "float16" or (dtype == "bfloat16" and asked == "auto" and not _has_fast_bfloat16())
        return "float32" if is_slow else dtype
    return "float32" if device == "mps" and dtype == "float64" else dtype  # Metal has no float64


def _has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, where torch tells it; others take several times as long for it as for float32."""
    has: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.13 has it
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one is of ARM


def _tokenizer(text: str) -> TextTokenizer:
    """The tokenizer of a saved model, from the text of its tokenizer.json."""
    try:
        return TextTokenizer(json.loads(text))
    except Exception as error:  # the tokenizers library raises bare Exception for any content it cannot read
        raise BadModel(
            f"The model's {TOKENIZER} cannot be read: {str(error).splitlines()[0]}. Train again, or name another model."
        ) from error


def _device_for(device: str, dtype: str, batch_size: int | None) -> torch.device:
    """The device that is asked for.

    Raises:
        BadSetting: it is not here, or another value cannot be.
    """
    if dtype not in DTYPES:
        raise BadSetting(f"dtype {dtype!r}: one of {', '.join(DTYPES)} is expected.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise BadSetting(f"batch_size {batch_size!r}: a whole number from 1 up is expected.")
    found = _device(device)
    if found.type == "mps" and dtype == "float64":
        raise BadSetting("--dtype float64: a Metal GPU has no such arithmetic. Type --device cpu.")
    return found


def _device(asked: str) -> torch.device:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, found in here.items() if found))
    if not here.get(asked):
        raise BadSetting(f"--device {asked}: there is none here. Use {', '.join(name for name, found in here.items() if found)}.")
    return torch.device(asked)
