"""bert_predict MODEL INPUT...: labels and probabilities for texts, with a trained model."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bert_train_parallel.command_line import Parser
from bert_train_parallel.config import DataConfig, read_settings
from bert_train_parallel.data.table import BadLines
from bert_train_parallel.errors import BadSetting, run_command
from bert_train_parallel.run_files import written_aside

if TYPE_CHECKING:  # torch takes seconds to import: --help, and a mistake in a flag or in the input, answer at once
    from bert_train_parallel.models.reading import Reading
    from bert_train_parallel.predict.predictor import Prediction, Predictor
    from bert_train_parallel.predict.texts import Entry

_COLUMN_SETTINGS = ("text", "text_pair", "encoding", "delimiter", "quoting", "header", "max_cell_bytes")
_TABLE_SETTINGS = {"text", "text_pair", "delimiter", "quoting", "header"}  # of a file that has columns


def main(argv: Sequence[str] | None = None, told: Callable[[Callable[[], int]], int] = lambda body: body()) -> int:
    """Labels and probabilities for texts, with a trained model."""

    # `told` calls what it is given, and leaves the reason of a failure where a launcher looks for it
    def body() -> int:
        _predict(_parser().parse_args(argv))
        return 0

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode still shows the labels
    return run_command("bert_predict", lambda: told(body))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bert_predict",
        description=main.__doc__,
        epilog="Examples: bert_predict leanings_trained_model.sav 'What a day!'; bert_predict leanings_model new.csv -t tweet -o out.csv",
    )
    parser.add_argument("model", metavar="MODEL", help="a _trained_model.sav file, a model folder, or the folder or any file of a run")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="texts; or one CSV, JSON lines or Parquet file, or a .txt of one text a line; or - for lines of standard input",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there (.csv or .jsonl) instead of to the terminal")
    parser.add_argument("--with_text", action="store_true", help="repeat the text beside its prediction; always so for texts given here")
    parser.add_argument("-q", "--quiet", action="store_true", help="no line about numbers and speed")
    columns = parser.add_argument_group("columns of a file, as in training")
    for name in _COLUMN_SETTINGS:
        flags = ["-t"] if name == "text" else []
        help = DataConfig.model_fields[name].description
        columns.add_argument(*flags, f"--{name}", dest=name, metavar="TEXT", default=argparse.SUPPRESS, help=help)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"], help="what to compute on (default: auto)")
    machine.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16", "float64"],
        help="precision; auto: as in training, or float32 where that is no faster here",
    )
    machine.add_argument("--batch_size", metavar="N", type=int, help="rows of full length per forward pass")
    machine.add_argument("--threads", metavar="N", type=int, help="CPU threads")
    return parser


@dataclass(slots=True)
class _Count:
    """What was done, for the line at the end."""

    predicted: int = 0
    bad: BadLines = field(default_factory=BadLines)

    def __str__(self) -> str:
        texts = f"{self.predicted:,} text{'s' * (self.predicted > 1)}"
        return f"{texts}, and no prediction for {self.bad}" if self.bad.total else texts


def _predict(arguments: argparse.Namespace) -> None:
    for name in ("batch_size", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BadSetting(f"--{name} {value}: a whole number from 1 up is expected.")
    if arguments.output:
        _check_place(arguments.output)
    if arguments.threads:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # of the tokenizers, which read it when they start
    from bert_train_parallel.models.reading import find_saved, reading_of
    from bert_train_parallel.predict import lines, texts

    form = lines.form_of(arguments.output)
    place = find_saved(Path(arguments.model))
    entries, from_arguments = _entries(arguments, reading_of(place))
    entries = texts.begun(entries)
    with_text = arguments.with_text or from_arguments

    import torch

    from bert_train_parallel.predict.predictor import load_model

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    predictor = load_model(place, arguments.device, arguments.dtype, arguments.batch_size)
    saved = predictor.saved

    began, count = time.perf_counter(), _Count()
    labels = saved.label_names if saved.reading.task_type == "classification" else ()
    header = [lines.csv_header(labels, with_text)] if form == "csv" else []
    line = lines.csv_line(labels, with_text) if form == "csv" else lines.json_line(with_text)
    found = (line(entry, prediction) for entry, prediction in _in_order(predictor, entries, count))
    _write(_headed(header, found), arguments.output)
    if not arguments.quiet:
        seconds = time.perf_counter() - began
        print(f"{count} ({count.predicted / seconds:,.0f} texts/s)", file=sys.stderr)


def _headed(header: Sequence[str], lines: Iterable[str]) -> Iterator[str]:
    """The lines under a header, which does not come before there is a first line: a mistake then leaves nothing."""
    for number, line in enumerate(lines):
        yield from header if number == 0 else ()
        yield line


def _check_place(output: Path) -> None:
    if output.is_dir():
        raise BadSetting(f"--output {output} is a folder. Name a file in it, such as {output / 'labels.csv'}.")
    for parent in output.parents:
        if parent.exists() and not parent.is_dir():
            raise BadSetting(f"--output {output}: {parent} is a file, not a folder.")


def _entries(arguments: argparse.Namespace, reading: Reading) -> tuple[Iterator[Entry], bool]:
    """What to predict for, and whether it was written on the command line."""
    from bert_train_parallel.predict import texts

    given = {"text": reading.text, "text_pair": reading.text_pair, "max_cell_bytes": reading.max_cell_bytes}
    config = read_settings(DataConfig, argparse.Namespace(**given | vars(arguments)))
    if arguments.inputs == ["-"]:
        return texts.of_lines(sys.stdin.buffer, config.max_cell_bytes), False
    named = texts.file_named(arguments.inputs)
    if named is None:
        return texts.of_arguments(arguments.inputs, reading), True
    if arguments.output and arguments.output.resolve() == Path(named).resolve():
        raise BadSetting(f"--output {arguments.output} is the input. Name another file.")
    say = (lambda sentence: None) if arguments.quiet else (lambda sentence: print(sentence, file=sys.stderr))
    is_lines = texts.is_plain(named) and reading.text_pair is None and not _TABLE_SETTINGS & vars(arguments).keys()
    return (texts.of_plain_file if is_lines else texts.of_file)(named, config, say), False


def _in_order(predictor: Predictor, entries: Iterable[Entry], count: _Count) -> Iterator[tuple[Entry, Prediction | None]]:
    """Each entry with its prediction, or None for one without text; no more of them in memory than the predictor holds."""
    waiting: deque[Entry] = deque()

    def texts() -> Iterator[tuple[str, ...]]:
        for entry in entries:
            waiting.append(entry)
            if entry.texts is not None:
                yield entry.texts

    def without_text() -> Iterator[tuple[Entry, None]]:
        while waiting and waiting[0].texts is None:
            count.bad.add(waiting[0].line, waiting[0].lacks)
            yield waiting.popleft(), None

    for prediction in predictor.stream(texts()):
        yield from without_text()
        count.predicted += 1
        yield waiting.popleft(), prediction
    yield from without_text()


def _write(lines: Iterable[str], output: Path | None) -> None:
    """To the terminal as they come, or to a file that is complete or absent."""
    if output is None:
        for line in lines:
            print(line)
        return
    with written_aside(output, "--output") as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
