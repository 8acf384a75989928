"""The command `bert_train_parallel`: a training run, or one rank of it where a launcher started several."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bert_train_parallel.command_line import Parser
from bert_train_parallel.config import TrainConfig, add_arguments, read_settings
from bert_train_parallel.errors import run_command
from bert_train_parallel.processes import end_with
from bert_train_parallel.rank import Rank
from bert_train_parallel.training.api import prepare, train
from bert_train_parallel.training.imports import leave_out_unused
from bert_train_parallel.training.last_words import told_to_launcher

_NAME = "bert_train_parallel"


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


if __name__ == "__main__":
    sys.exit(main())
