"""What cannot be done, told before any work: settings against this machine, the world, the model and an earlier run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.store import Content
from bert_train_parallel.model_names import check_config, check_weights, locate_model
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import CLAIM, RunFiles, read_object
from bert_train_parallel.training import runs
from bert_train_parallel.training.samples import check_settings
from bert_train_parallel.training.shares import Shares, words_on_those_left

# In what a run may differ from the one that it goes on from under a new name: how long it learns, and from how much
MAY_GROW = ("epochs", "max_steps", "patience", "max_train_samples")

# kinds of models that are known to have a classifier; transformers, which takes seconds to load, is asked of others
_CLASSIFIERS = {"bert", "roberta", "distilbert", "electra", "xlm-roberta", "albert", "camembert", "mpnet", "deberta-v2", "modernbert"}

Asked = Mapping[str, Any]
_LOG = logging.getLogger(__name__)


def check_machine(config: TrainConfig, rank: Rank) -> None:
    """See that this rank can compute as the settings say. torch is loaded only where they name what a machine may lack.

    Raises:
        BadSetting: no such device, a precision that it lacks, or shares for another number of ranks.
    """
    Shares.of_setting(config.shares, rank.world_size)
    if rank.is_first and (words := words_on_those_left(config.shares, rank.world_size, os.environ)):
        _LOG.warning(words)
    goes_on = config.resume or config.from_run or rank.attempt > 0  # a checkpoint brings its precision along
    if config.device in ("cuda", "mps") or (config.dtype == "float16" and not goes_on):
        from bert_train_parallel.training.precision import check_dtype
        from bert_train_parallel.training.world import choose_device

        device = choose_device(config.device, rank)
        if not goes_on:
            check_dtype(config.dtype, device)


def check_model(config: TrainConfig) -> None:
    """See that a local model can be trained to classify, as far as its folder shows.

    Raises:
        BadModel: it has no config.json or no weights, or is of a kind without a classifier.
    """
    place = locate_model(config.model)
    if not isinstance(place, Path):
        return
    check_config(place)
    check_weights(place)
    try:
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind not in _CLASSIFIERS:
        from bert_train_parallel.models.loading import read_config

        read_config(place)


def check_content(named: RunFiles, config: TrainConfig, rank: Rank) -> Callable[[Content], None]:
    """What is to be seen of a store before it is used, or takes the place of an earlier one; settings alone are compared at once.

    Returns:
        A function that raises BadSetting where the settings do not fit the labels, and BadCheckpoint where the run to go on with
        learned from other data.
    Raises:
        BadCheckpoint: the run to go on with is not there, or had other settings.
    """
    place, earlier, flag, may_differ = _earlier(named, config, rank)

    def compare(asked: Asked) -> None:
        if place is not None and earlier is not None:
            runs.refuse_other(place, asked, earlier, flag, may_differ)

    def check(content: Content) -> None:
        check_settings(config, content)
        if content.fingerprint is not None:
            compare(config.asked(content.fingerprint))

    compare({name: value for name, value in config.asked("").items() if name != "data"})
    return check


def _earlier(named: RunFiles, config: TrainConfig, rank: Rank) -> tuple[Path | None, Asked | None, str, tuple[str, ...]]:
    """The folder of the run that --resume or --from_run means, what was asked of it where it says so, the flag, and what may differ."""
    goes_on = runs.choose_run(named, config, rank)
    if goes_on.goes_on:
        return goes_on.files.checkpoints, runs.read_claim(goes_on.files).get("asked"), "--resume", ()
    if not config.from_run or not rank.is_first:  # other nodes may not have that run
        return None, None, "", ()
    place = runs.earlier_run(config.from_run)
    folder = place if place.name.endswith("_checkpoints") else place.parent
    return place, read_object(folder / CLAIM).get("asked"), "--from_run", MAY_GROW
