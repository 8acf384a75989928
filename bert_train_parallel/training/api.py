"""Training and preparation as functions; the command line is a thin shell over them. No torch until a model is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_train_parallel.config import DataConfig, TrainConfig, make_settings
from bert_train_parallel.data import preparation
from bert_train_parallel.data.store import Content, Store
from bert_train_parallel.errors import BadSetting, BadSource
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import RunFiles, name_given, run_files
from bert_train_parallel.training import refusals, runs
from bert_train_parallel.training.imports import libraries
from bert_train_parallel.training.reporter import Reporter
from bert_train_parallel.training.samples import check_settings


def train(source: str | Path, config: TrainConfig | None = None, *, quiet: bool = False, **settings: Any) -> dict[str, Any]:
    """Fine-tune a model on a CSV, data set or store; gives what the run's RESULT file holds.

    In a process that a launcher started this is one rank of the world, and every rank gives the same.

    Args:
        config: how; or leave it out and give its settings by name: `train("leanings.csv", model="minilm", epochs=2)`. With both,
            the names win.
        quiet: print nothing.
    Raises:
        BertTrainParallelError: a sentence for the user; files are complete or absent.
    """
    source = _source(source)
    config = make_settings(TrainConfig, config, settings)
    rank = Rank.from_environ()
    reporter = Reporter(rank.is_first, rank.attempt, config.logfile, speaks=not quiet, shows_line=not config.quiet_progress)
    try:
        named = run_files(source, config.output_dir, config.run)
        # ranks beside a node's first one wait for it when they join the world, and open what it has made
        refusals.check_machine(config, rank)
        if rank.node_rank == 0 and not (config.resume or config.from_run or rank.attempt):  # a checkpoint has weights of its own
            refusals.check_model(config)
        store = _prepared(source, config, reporter, refusals.check_content(named, config, rank)) if rank.is_first_of_node else None
        if store is not None and rank.world_size == 1:
            result = _finished(store, named, config, reporter)
            if result is not None:
                return result
        with libraries():
            from bert_train_parallel.training.run import run_rank  # torch

            return run_rank(
                lambda: store or _prepared(source, config, None, lambda content: check_settings(config, content)),
                named,
                config,
                rank,
                reporter,
            )
    finally:
        reporter.close()


def prepare(
    source: str | Path, config: DataConfig | None = None, *, quiet: bool = False, output_dir: str | Path | None = None, **settings: Any
) -> Store:
    """Build the store of a source, or open the finished one; close it, or use it as a context manager.

    Args:
        config: how to read, split and fold; or leave it out and give its settings by name.
        output_dir: folder for the store; beside the source when left out.
    Raises:
        BertTrainParallelError: a sentence for the user; nothing has changed.
    """
    config = make_settings(DataConfig, config, settings)
    if output_dir is not None:
        output_dir = name_given(output_dir, "output_dir", "a folder", BadSetting)
    return preparation.prepare(config, _source(source), output_dir, (lambda sentence: None) if quiet else print)


def _source(given: object) -> str:
    return name_given(given, "source", "a file, a folder or the name of a data set, such as 'leanings.csv',", BadSource)


def _prepared(source: str, config: TrainConfig, reporter: Reporter | None, check: Callable[[Content], None]) -> Store:
    return preparation.prepare(config, source, config.output_dir, reporter.say if reporter else lambda sentence: None, check)


def _finished(store: Store, named: RunFiles, config: TrainConfig, reporter: Reporter) -> dict[str, Any] | None:
    """The result of a run that --resume would only find finished, without loading torch."""
    newest = named.newest_begun() if config.resume else None
    result = runs.finished_result(newest, config.asked(store.fingerprint)) if newest else None
    if newest and result:
        reporter.say(runs.is_finished_sentence(newest))
    return result
