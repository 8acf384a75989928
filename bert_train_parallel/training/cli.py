"""The command `bert_train_parallel`: a training run, or one rank of it where a launcher started several."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_train_parallel.command_line import Parser
from bert_train_parallel.config import TrainConfig, add_arguments, read_settings
from bert_train_parallel.errors import BertTrainParallelError, run_command
from bert_train_parallel.processes import end_with
from bert_train_parallel.rank import Rank
from bert_train_parallel.training.api import prepare, train
from bert_train_parallel.training.imports import leave_out_unused

_NAME = "bert_train_parallel"
_FIRST_SPEAKS_S = 1.5  # a node's first rank fails alike in most cases, and says it; the launcher then ends this one


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune a BERT on labelled texts, test it, and write what came out beside the input."""

    def command() -> int:
        return run_command(_NAME, lambda: told_to_launcher(lambda: _run(argv)))

    return command() if os.environ.get("WORLD_SIZE", "1") == "1" else end_with(command)


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog=_NAME, description=main.__doc__)
    parser.add_argument("source", help="CSV, TSV, JSON lines, Parquet, a store (.sqlite), a folder or name of a Hugging Face data set")
    parser.add_argument("-p", "--preponly", "--prep_only", action="store_true", help="build the store and stop")
    add_arguments(parser, TrainConfig)
    arguments = parser.parse_args(argv)
    config = read_settings(TrainConfig, arguments)
    if not arguments.preponly:
        leave_out_unused()
        train(arguments.source, config)
    elif Rank.from_environ().is_first_of_node:
        prepare(arguments.source, config, output_dir=config.output_dir).close()
    return 0


def told_to_launcher(body: Callable[[], int]) -> int:
    """Run one rank; leave the reason of a failure where the launcher looks for it."""
    rank = Rank.from_environ()
    if rank.local_world_size > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin would take the cores of other ranks
    try:
        return body()
    except BertTrainParallelError as error:
        _write_failure(str(error), error.kind, error.exit_code, "")
        if not rank.is_first_of_node:
            sys.stdout.flush()
            time.sleep(_FIRST_SPEAKS_S)
        raise
    except Exception as error:
        _write_failure(f"{type(error).__name__}: {error}", "error", 1, traceback.format_exc())
        raise


def _write_failure(message: str, kind: str, exit_code: int, callstack: str) -> None:
    """In the format of torch's `@record`, with two fields of ours."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"py_callstack": callstack, "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra, "kind": kind, "exit_code": exit_code}}))
    except OSError:  # the launcher then tells it from the log
        pass


if __name__ == "__main__":
    sys.exit(main())
