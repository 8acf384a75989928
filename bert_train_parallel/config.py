"""What a user sets, checked once where it is made; the command line and a JSON file read the same model.

Each field says which part of the work it belongs to:

- `data`     decides what is in the store (samples, split, folded rows)
- `model`    decides, with the data and the seed, what is learned
- `machine`  changes only the time, the memory or the place of files
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from bert_train_parallel.errors import BadSetting

METRICS = {  # figures of the validation samples, by what is learned
    "classification": ("loss", "accuracy", "macro_f1", "weighted_f1", "mcc"),
    "regression": ("loss", "mse", "pearson", "spearman"),
}

FORMAT = 1  # of model_key: raise it when the same settings begin to mean something else


def setting(default: Any, part: Literal["data", "model", "machine"], help: str, flags: Sequence[str] = (), **checks: Any) -> Any:
    """A field with its part, its help and its spellings on the command line beside `--name`."""
    return Field(default, description=help, json_schema_extra={"part": part, "flags": list(flags)}, **checks)


Fraction = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How samples are read, split and folded. The same config and source give the same store.

    Raises:
        pydantic.ValidationError: a value that cannot be. It stays pydantic's own here, which lists every wrong value and is a
            ValueError, as other models that hold these settings need it; `prepare` and `train` with settings by name, and the
            command line, raise BadSetting: one sentence.
    """

    text: str | None = setting(None, "data", "Column of the text; guessed from the header when left out.", ["-t"])
    text_pair: str | None = setting(None, "data", "Column of a second text, for sentence pairs.")
    label: str | None = setting(None, "data", "Column of the label; guessed from the header when left out.", ["-l", "--labels"])
    task_type: Literal["auto", "classification", "regression"] = setting(
        "auto", "data", "What to learn; auto: regression when the labels are numbers with fractions."
    )
    model: str = setting(
        "bert-base-uncased", "data", "Model: a Hugging Face name, a local folder, or minilm (needs no hub).", ["--model_name"]
    )
    encoding: str = setting("auto", "data", "Text encoding of the source, such as utf-8 or latin-1.")
    delimiter: str = setting("auto", "data", "What separates the columns: one character, or tab.")
    quoting: Literal["auto", "minimal", "none"] = setting(
        "auto", "data", "Whether double quotes enclose cells (minimal) or are text (none)."
    )
    header: Literal["auto", "yes", "no"] = setting(
        "auto", "data", "Whether the first line names the columns; without one they are called 0, 1, 2, ..."
    )
    dataset_config: str | None = setting(None, "data", "Configuration of a Hugging Face data set.")
    validation_file: str | None = setting(None, "data", "Samples to validate with; the input then gives no validation samples.")
    test_file: str | None = setting(None, "data", "Samples to test with; the input then gives no test samples.")
    split: tuple[Fraction, Fraction, Fraction] = setting((0.8, 0.1, 0.1), "data", "Shares of train, validate and test, such as 80/10/10.")
    split_seed: int = setting(0, "data", "Seed of the split into train, validate and test.", ge=0)
    sequence_len: int = setting(128, "data", "Tokens per folded row, with [CLS] and [SEP].", ["--sequence_length"], ge=3, le=8192)
    long_texts: Literal["fold", "truncate", "head_tail"] = setting(
        "fold", "data", "A text longer than a row: several rows, its beginning only, or its beginning and end."
    )
    stride: int = setting(0, "data", "Tokens that a folded row repeats from the row before it.", ge=0)
    max_cell_bytes: int = setting(16_000_000, "data", "A longer cell makes its line a bad one.", ge=1_000)
    max_bad_rows: float = setting(0.1, "data", "Share of lines that may be without text or label before it is an error.", ge=0, le=1)

    @field_validator("model", "validation_file", "test_file", "output_dir", "logfile", "from_run", mode="before", check_fields=False)
    @classmethod
    def _read_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("split", mode="before")
    @classmethod
    def _read_split(cls, value: Any) -> Any:
        """`80/10/10`, `8,1,1` or three fractions; they are scaled to a sum of 1."""
        if isinstance(value, str):
            value = value.replace("/", ",").split(",")
        try:
            parts = [float(part) for part in value]
        except (TypeError, ValueError):
            raise ValueError("three numbers are expected, such as 80/10/10") from None
        if len(parts) != 3 or not (min(parts) >= 0 and sum(parts) < math.inf) or parts[0] <= 0 or sum(parts) == parts[0]:
            raise ValueError("three numbers are expected, the first and one of the others above 0, such as 80/10/10")
        return tuple(part / sum(parts) for part in parts)

    @field_validator("delimiter")
    @classmethod
    def _read_delimiter(cls, value: str) -> str:
        value = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}.get(value, value)
        if value != "auto" and (len(value) != 1 or value in '\r\n"'):
            raise ValueError("one character, tab, or auto is expected")
        return value

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride and self.stride >= self.sequence_len - 2:
            raise ValueError(f"--stride {self.stride} leaves no room for new tokens in rows of {self.sequence_len}; use at most half")
        return self

    def spec(self) -> dict[str, Any]:
        """The settings that decide what is in a store, as JSON values."""
        found = self.model_dump(mode="json")
        return {name: found[name] for name, field in DataConfig.model_fields.items() if _part(field) == "data"}


class TrainConfig(DataConfig, frozen=True, extra="forbid", allow_inf_nan=False):
    """How one run trains. The same config, data and seed give the same model on any fleet.

    Raises:
        pydantic.ValidationError: as for a DataConfig.
    """

    epochs: int = setting(3, "model", "Passes over the training samples.", ["-e", "--epoch"], ge=1)
    batch_size: int = setting(32, "model", "Rows per optimizer step, over the whole world.", ge=1)
    learning_rate: float = setting(5e-5, "model", "Peak learning rate of AdamW.", ["--lr"], gt=0)
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "model", "Course of the learning rate after the warm-up.")
    warmup: float = setting(0.1, "model", "Share of all steps in which the learning rate rises from 0.", ["--warmup_ratio"], ge=0, le=1)
    weight_decay: float = setting(0.01, "model", "Decoupled weight decay; none for biases and layer norms.", ge=0)
    clip_norm: float = setting(1.0, "model", "Largest norm of the gradient; 0 for no clipping.", ["--max_grad_norm"], ge=0)
    seed: int = setting(0, "model", "Seed of the new head, the order of the rows and the dropout.", ge=0)
    max_steps: int | None = setting(None, "model", "Stop after this many optimizer steps.", ge=1)
    dropout: float | None = setting(None, "model", "Hidden dropout; the model's own when left out.", ge=0, lt=1)
    attention_dropout: float = setting(0.0, "model", "Dropout of attention weights; above 0 it leaves the fast kernels.", ge=0, lt=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = setting(
        "auto", "model", "Precision of the arithmetic; auto: bfloat16 where every GPU has it, else float32."
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = setting(
        "none", "model", 'none, balanced (inverse frequency), or JSON such as {"spam": 3}.'
    )
    row_weights: Literal["rows", "samples"] = setting(
        "rows", "model", "Whether each row counts for 1, or the rows of one sample share 1, so that long texts do not dominate."
    )
    combine: Literal["mean", "vote", "max"] = setting("mean", "model", "How the rows of one sample are combined.")
    max_train_samples: int | None = setting(None, "model", "Train on at most this many samples.", ge=1)
    max_eval_samples: int | None = setting(None, "model", "Validate and test on at most this many samples each.", ge=1)
    shuffle_before_select: bool = setting(False, "model", "Choose those samples in a random order, not from the top of the file.")
    group_by_length: bool = setting(False, "model", "Batches of rows of like length: faster, but other batches than without it.")
    metric: Literal["accuracy", "macro_f1", "weighted_f1", "mcc", "loss", "pearson", "spearman", "mse"] = setting(
        "loss", "model", "Validation figure that chooses the best epoch."
    )
    patience: int = setting(0, "model", "Stop after this many epochs without a better figure; 0 for never.", ["--early_stopping"], ge=0)

    device: Literal["auto", "cuda", "mps", "cpu"] = setting("auto", "machine", "What to compute on.")
    micro_batch_size: int | None = setting(None, "machine", "Rows per forward pass of one rank, when a whole share does not fit.", ge=1)
    gradient_checkpointing: bool = setting(False, "machine", "Compute activations again in backward: less memory, more time.")
    matmul: Literal["auto", "mkl", "onednn"] = setting("auto", "machine", "Library of float32 matrix products on a CPU.")
    threads: int | None = setting(None, "machine", "CPU threads of each rank.", ge=1)
    shares: str = setting(
        "auto", "machine", "How a batch is divided over ranks: auto (by measured speed), equal, or numbers such as 3,1,1."
    )
    checkpoint_every: int = setting(0, "machine", "Optimizer steps between checkpoints, beside one each epoch; 0 for none.", ge=0)
    keep_checkpoints: int = setting(2, "machine", "Checkpoints to keep, beside the best.", ge=1)
    resume: bool = setting(False, "machine", "Go on from the newest checkpoint that verifies.")
    from_run: str | None = setting(
        None, "machine", "Go on, under a new name, from the newest checkpoint of this earlier run, with more epochs than it had."
    )
    run: str | None = setting(None, "machine", "Name of the run, to keep several over one source.")
    output_dir: str | None = setting(None, "machine", "Folder for all files of the run; beside the input when left out.")
    logfile: str | None = setting(None, "machine", "Also write what the terminal shows to this file.", ["-f"])
    quiet_progress: bool = setting(False, "machine", "No progress line on the terminal.")
    log_every: int = setting(0, "machine", "Optimizer steps between progress events; 0: about one each second.", ge=0)
    profile: bool = setting(False, "machine", "Write a torch profiler trace and print where the time of a step goes.")
    export: bool = setting(True, "machine", "Write the model files at the end; --no_export leaves them out.")

    @field_validator("class_weights", mode="before")
    @classmethod
    def _read_class_weights(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"not JSON: {error}") from None
        if isinstance(value, dict) and any(not isinstance(weight, int | float) or not 0 <= weight < math.inf for weight in value.values()):
            raise ValueError("weights are numbers from 0 up")
        return value

    @field_validator("shares")
    @classmethod
    def _read_shares(cls, value: str) -> str:
        if value in ("auto", "equal"):
            return value
        try:
            parts = [float(part) for part in value.split(",")]
        except ValueError:
            raise ValueError("auto, equal, or one number per rank such as 3,1,1 is expected") from None
        if min(parts) < 0 or not 0 < sum(parts) < math.inf:
            raise ValueError("shares are numbers from 0 up, at least one above 0, none of them infinite")
        return value

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        problem = "" if self.task_type == "auto" else self.misfit(self.task_type)
        if problem:
            raise ValueError(problem)
        return self

    def misfit(self, task_type: str) -> str:
        """Why these settings cannot be those of a classification or a regression, as a sentence; empty where they can.

        >>> TrainConfig(metric="mse").misfit("regression")
        ''
        >>> TrainConfig(metric="mse").misfit("classification")
        '--metric mse is not a figure of a classification. Choose one of loss, accuracy, macro_f1, weighted_f1, mcc.'
        """
        known = METRICS[task_type]
        if self.metric not in known:
            return f"--metric {self.metric} is not a figure of a {task_type}. Choose one of {', '.join(known)}."
        if self.class_weights != "none" and task_type != "classification":
            return "--class_weights: the labels are numbers, not classes. Leave it out, or type --task_type classification."
        return ""

    def asked(self, data_fingerprint: str) -> dict[str, Any]:
        """All that decides what is learned, as JSON values: the settings that make the model, and the data."""
        values = self.model_dump(mode="json")
        chosen = {name: values[name] for name, field in type(self).model_fields.items() if _part(field) == "model"}
        return chosen | {"model": self.model, "data": data_fingerprint, "format": FORMAT}

    def model_key(self, data_fingerprint: str) -> str:
        """A hash of what decides what is learned.

        Equal keys mean the same model up to rounding; the fleet and the place of files do not count.
        """
        return hashlib.sha256(json.dumps(self.asked(data_fingerprint), sort_keys=True).encode()).hexdigest()[:32]


def _part(field: Any) -> str:
    return str((field.json_schema_extra or {}).get("part", "model"))


def setting_names(*parts: str) -> list[str]:
    """The settings of these parts, by name.

    >>> "learning_rate" in setting_names("model"), "device" in setting_names("data", "model")
    (True, False)
    """
    return [name for name, field in TrainConfig.model_fields.items() if _part(field) in parts]


def add_arguments(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """One flag for each field of a settings model, and `--config FILE` for the same in JSON.

    Underscores and dashes are the same in a flag (`--batch_size`, `--batch-size`). Nothing is checked
    here: the model does that, in `read_settings`.
    """
    parser.add_argument("--config", metavar="FILE", help="JSON file with these settings; flags on the command line win")
    groups = {
        "data": parser.add_argument_group("data: what is in the store"),
        "model": parser.add_argument_group("model: what is learned"),
        "machine": parser.add_argument_group("machine: time, memory and places only"),
    }
    for name, field in model.model_fields.items():
        extra = typing.cast(dict[str, Any], field.json_schema_extra or {})
        short = [flag for flag in extra.get("flags", ()) if not flag.startswith("--")]
        long = [f"--{name}", *(flag for flag in extra.get("flags", ()) if flag.startswith("--"))]
        dashed = ["--" + flag[2:].replace("_", "-") for flag in long if "_" in flag]
        spellings = [*short, *long, *dashed]
        shown = "" if field.default is None or isinstance(field.default, bool) else f" (default: {_as_text(field.default)})"
        options: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": ((field.description or "") + shown).replace("%", "%%"),
        }
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction if name == "export" else "store_true"
        else:
            options["metavar"] = _metavar(field.annotation)
        if options.get("action") is argparse.BooleanOptionalAction:
            # argparse would write --no-export; the underscore spelling is ours, and both work
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        groups[_part(field)].add_argument(*spellings, **options)


def _as_text(value: Any) -> str:
    return "/".join(f"{100 * part:g}" for part in value) if isinstance(value, tuple) else str(value)


def _metavar(annotation: Any) -> str:
    """What a flag takes: the choices, or a word for the type.

    >>> _metavar(int | None), _metavar(Literal["fold", "truncate"])
    ('N', 'fold|truncate')
    """
    if typing.get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [_metavar(part) for part in typing.get_args(annotation) if part is not type(None)]
        return "|".join(kinds)
    return {int: "N", float: "X", str: "TEXT"}.get(annotation, "VALUE" if typing.get_origin(annotation) is not dict else "JSON")


_Config = typing.TypeVar("_Config", bound=BaseModel)


def read_settings(model: type[_Config], arguments: argparse.Namespace) -> _Config:
    """The settings model from parsed arguments, over those of `--config FILE` where one is given.

    Raises:
        BadSetting: a value or a name that the model does not take; the sentence names the flag or the file.
    """
    given = {name: value for name, value in vars(arguments).items() if name in model.model_fields}
    from_file: dict[str, Any] = {}
    if getattr(arguments, "config", None):
        from_file = read_json_settings(Path(arguments.config))
    try:
        return model(**(from_file | given))
    except ValidationError as error:
        raise BadSetting(_sentence(error, given, str(getattr(arguments, "config", "")), model)) from None


def make_settings(model: type[_Config], config: _Config | None, settings: dict[str, Any]) -> _Config:
    """The settings model that a function was given, or made from settings by name, or changed by them.

    Raises:
        BadSetting: a value or a name that the model does not take.
    """
    if config is not None and not isinstance(config, model):
        given = type(config).__name__
        raise BadSetting(f"The settings are a {given}; a {model.__name__} is expected, after the source, or settings by name.")
    if config is not None and not settings:
        return config
    try:
        return model(**((config.model_dump(exclude_unset=True) if config else {}) | settings))
    except ValidationError as error:
        raise BadSetting(_sentence(error, settings, "", model)) from None


def read_json_settings(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BadSetting: no such file, not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin a file with a byte order mark
    except FileNotFoundError:
        raise BadSetting(f"--config {path}: there is no such file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadSetting(f"--config {path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadSetting(f'--config {path} holds a {type(found).__name__}; an object such as {{"epochs": 2}} is expected.')
    return found


def _sentence(error: ValidationError, given: dict[str, Any], file: str, model: type[BaseModel]) -> str:
    """One line for the first thing a user got wrong."""
    import difflib

    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    where = f"--{name}" if name in given or not file else f'{file}: "{name}"'
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, 1)
        hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(sorted(model.model_fields))}."
        return f"{where} is not a setting.{hint}"
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if not name:
        return message.removesuffix(".") + "."
    return f"{where} {first['input']!r}: {message}."
