"""Sweeps and configurations as users write them: read from JSON files, with one sentence for the first mistake."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bert_train_parallel.data.sources import check_exists
from bert_train_parallel.errors import BadSetting, BadSource
from bert_train_parallel.sweeps.draw import configurations, grid, why_no_more
from bert_train_parallel.sweeps.messages import (
    BertEvalRequest,
    BertFineTuneConfig,
    CoordinatorWorkflowInput,
    LaunchSettings,
    SweepRequest,
    counted,
    first_problem,
    fitting_name,
)
from bert_train_parallel.sweeps.rungs import rungs_of

Model = TypeVar("Model", bound=BaseModel)
_MOST_OF_A_GRID = 10_000  # combinations that are run unless a number is given
_FILES = ("dataset_name", "validation_file", "test_file")
_DATA = (*_FILES, "model_name")
_MODEL = {"model_name", "model"}  # how a space may call it


def read_sweep(path: Path) -> SweepRequest:
    """A sweep from a file; the data and models that it names are looked for beside the file, then from here.

    Raises:
        BadSetting: no such file, not JSON, or a field that cannot be; the sentence names file and field.
    """
    found = _read(path, "random")
    if "configs" in found and "base" not in found:
        raise BadSetting(f"{path} holds several configurations, and no sweep. Type bert_sweep coordinate {path}.")
    if "experiment_id" not in found:
        found["experiment_id"] = path.stem
        if fitting_name(path.stem) != path.stem:
            fitting = fitting_name(path.stem) or "mine"
            raise BadSetting(f'{path}: the name of this file cannot be that of a sweep; write "experiment_id": "{fitting}" in it.')
    if found.get("so_far") is not None:
        raise BadSetting(f"{path}: so_far is not a setting of a sweep.")
    if isinstance(found.get("base"), dict):
        _place(found["base"].get("fine_tune_config"), path)
    _place_models(found.get("space"), path)
    request = _checked(SweepRequest, found, path)
    if request.base.launch != LaunchSettings():
        raise BadSetting(f"{path}: base.launch: all trials of a sweep are launched alike; write launch beside base.")
    if request.sampler == "grid" and "num_trials" not in found:
        count = _combinations(request)
        if count > _MOST_OF_A_GRID:
            raise BadSetting(f"{path}: the grid has more than {_MOST_OF_A_GRID:,} combinations; num_trials says how many of them to run.")
        request = request.model_copy(update={"num_trials": count})
    return request


def notes_on(request: SweepRequest) -> list[str]:
    """What a sweep file says that is done in part, or not at all."""
    notes = []
    if request.sampler == "grid" and request.num_trials < _combinations(request):
        count = _combinations(request)
        which = f"{count:,}" if count <= _MOST_OF_A_GRID else f"more than {_MOST_OF_A_GRID:,}"
        notes.append(f"{request.num_trials:,} of {which} combinations are run, as num_trials says")
    everything = None if request.sampler == "grid" else configurations(request.space)
    new = sum(rung.new for rung in rungs_of(request.ladder, request.num_trials)) if request.ladder else request.num_trials
    if everything is not None and new > len(everything):
        notes.append(f"{counted(len(everything), 'trial')} begin{'s' * (len(everything) == 1)}, not {new:,}: {why_no_more(request.space)}")
    if request.base.run_id or request.base.fine_tune_config.run_id:
        notes.append(f"run_id has no effect in a sweep: its trials are called {request.experiment_id}-t0000 and so on")
    if request.base.evaluation_config != BertEvalRequest():
        notes.append("evaluation_config has no effect in a sweep: trials are compared by the validation split of their training")
    decided = sorted({"num_epochs", "max_train_samples"} & request.base.fine_tune_config.model_fields_set) if request.ladder else []
    if decided:
        verb = "has" if len(decided) == 1 else "have"
        notes.append(f"{' and '.join(decided)} of base {verb} no effect on a ladder: its rungs say how long, and by how much of the data")
    return notes


def notes_on_configurations(given: CoordinatorWorkflowInput) -> list[str]:
    """What a file of configurations says that has no effect."""
    notes = []
    for number, config in enumerate(given.configs):
        asked, trained = config.evaluation_config.max_seq_length, config.fine_tune_config.max_seq_length
        if asked not in (None, trained):
            notes.append(
                f"configs.{number}.evaluation_config.max_seq_length {asked} has no effect: a model reads {trained}, as in training"
            )
    return notes


def _combinations(request: SweepRequest) -> int:
    """Of the grid; counted no further than one above the most."""
    return sum(1 for _ in itertools.islice(grid(request.space), _MOST_OF_A_GRID + 1))


def read_configurations(path: Path) -> CoordinatorWorkflowInput:
    """Several configurations from a file; raises as `read_sweep` does."""
    found = _read(path, "coordinate")
    if "base" in found and "configs" not in found:
        raise BadSetting(f"{path} holds a sweep, and no configurations to be trained as they are. Type bert_sweep run {path}.")
    for config in found["configs"] if isinstance(found.get("configs"), list) else ():
        if isinstance(config, dict):
            _place(config.get("fine_tune_config"), path)
            _place(config.get("evaluation_config"), path)
    return _checked(CoordinatorWorkflowInput, found, path)


def check_data(configs: Iterable[BertFineTuneConfig | BertEvalRequest], path: Path) -> None:
    """See that the files which these configurations name are on this machine, which is to read them.

    Raises:
        BadSetting: one is not; the sentence names the file of the sweep and the field.
    """
    for config in configs:
        for field in _FILES:
            name = getattr(config, field, None)
            try:
                if name is not None:
                    check_exists(name)
            except BadSource as error:
                raise BadSetting(f"{path}: {field}: {error}") from None


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
        found = json.loads(text, object_pairs_hook=_each_once)
    except FileNotFoundError:
        raise BadSetting(f"{path}: there is no such file. `bert_sweep example {kind} > {path}` writes one to begin with.") from None
    except IsADirectoryError:
        raise BadSetting(f"{path} is a folder. Name the JSON file of the sweep.") from None
    except (OSError, ValueError) as error:
        raise BadSetting(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadSetting(f"{path} holds a {type(found).__name__}; an object is expected. `bert_sweep example {kind}` shows one.")
    _check_finite(found, path)
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would take the last where a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice; leave one out.")
    return found


def _check_finite(found: Any, path: Path, place: str = "") -> None:
    """Raises BadSetting for Infinity and NaN, which Python reads where JSON has no such number."""
    if isinstance(found, float) and not math.isfinite(found):
        raise BadSetting(f"{path}: {place}: {found} is no number; write one, or leave {place.rpartition('.')[2]} out.")
    for name, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        _check_finite(value, path, f"{place}.{name}" if place else str(name))


def _place(config: Any, path: Path) -> None:
    """Names of files become whole paths, which mean the same in every process."""
    if not isinstance(config, dict):
        return
    for name in _DATA:
        if name in config:
            config[name] = _placed(config[name], path)


def _place_models(space: Any, path: Path) -> None:
    """The same for models among which a sweep chooses, also where another setting depends on which it is."""
    for name, parameter in space.items() if isinstance(space, dict) else ():
        if name in _MODEL and isinstance(parameter, list):
            space[name] = _placed(parameter, path)
        if isinstance(parameter, dict):
            if name in _MODEL and "values" in parameter:
                parameter["values"] = _placed(parameter["values"], path)
            if isinstance(parameter.get("when"), dict):
                when = parameter["when"]
                when |= {other: _placed(when[other], path) for other in _MODEL & when.keys()}


def _placed(value: Any, path: Path) -> Any:
    """A name, or each of a list of names, as a whole path where there is such a file or folder."""
    if isinstance(value, list):
        return [_placed(one, path) for one in value]
    if not isinstance(value, str) or not value:
        return value
    places = path.parent / Path(value).expanduser(), Path(value).expanduser()
    return next((str(place.resolve()) for place in places if place.exists()), value)


def _checked(model: type[Model], found: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        words = first_problem(error)
        raise BadSetting(f"{path}: {words}{'' if words.endswith('?') else '.'}") from None
