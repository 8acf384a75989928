"""Proposals of new trials by Optuna's TPE. Nothing is kept between calls: sorted history in, values out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bert_train_parallel.errors import MissingPackage
from bert_train_parallel.sweeps.draw import Values, draw_new, draw_random, key_of, uniform
from bert_train_parallel.sweeps.messages import TrialResult
from bert_train_parallel.sweeps.space import Choice, FloatRange, IntRange, SweepSpace, is_in_force

if TYPE_CHECKING:
    import optuna

STARTUP = 10  # trials drawn at random before the model is asked
ASKED = 5  # proposals for one trial, until one is new
WORST = {"nan", "oom"}  # the model is to learn to stay away from these; a trial that failed otherwise says nothing


def propose(
    space: SweepSpace,
    ended: Sequence[TrialResult],
    running: Sequence[Values],
    *,
    seed: int,
    number: int,
    count: int = 1,
    maximise: bool = True,
    taken: Iterable[Values] | None = None,
) -> list[Values]:
    """Values for `count` new trials, the first with this number; fewer where the space has no others.

    The answer follows from the arguments alone: `ended` is sorted by trial number, each proposal has a seed of its own, and
    counts as running for those after it (constant liar).

    Args:
        taken: values of all trials so far, which are not proposed again: what TPE proposes of them is asked for anew, as running,
            and in the end drawn at random. None: they may be proposed again.
    Raises:
        MissingPackage: Optuna is not installed.
    """
    proposals: list[Values] = []
    keys = None if taken is None else {key_of(values) for values in taken}
    known = sorted(ended, key=lambda trial: (trial.number, trial.rung))
    for place in range(number, number + count):
        is_startup = len([trial for trial in known if trial.score is not None]) < STARTUP
        study = None if is_startup else _study(space, known, [*running, *proposals], int(uniform(seed, place, "tpe") * 2**32), maximise)
        if keys is None:
            proposals.append(_ask(study, space) if study else draw_random(space, seed, place))
            continue
        asked = (_ask(study, space) for _ in range(ASKED if study else 0))
        values = next((one for one in asked if key_of(one) not in keys), None) or draw_new(space, seed, place, keys)
        if values is None:
            break
        keys.add(key_of(values))
        proposals.append(values)
    return proposals


def _study(space: SweepSpace, ended: Iterable[TrialResult], running: Iterable[Values], seed: int, maximise: bool) -> optuna.Study:
    optuna = import_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # grouped: parameters that are in force together get one joint model, so that conditions are kept
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if maximise else "minimize")
    for trial in ended:
        state = optuna.trial.TrialState.COMPLETE if trial.score is not None else optuna.trial.TrialState.PRUNED
        if trial.score is None and trial.state not in WORST:
            continue
        study.add_trial(_frozen(space, trial.values, state=state, value=trial.score))
    for values in running:
        study.add_trial(_frozen(space, values, state=optuna.trial.TrialState.RUNNING))
    return study


def _frozen(space: SweepSpace, values: Values, **how: Any) -> optuna.trial.FrozenTrial:
    optuna = import_optuna()
    known = {name: parameter for name, parameter in space if name in values}
    return optuna.trial.create_trial(
        params={name: values[name] for name in known},
        distributions={name: distribution(parameter) for name, parameter in known.items()},
        **how,
    )


def _ask(study: optuna.Study, space: SweepSpace) -> Values:
    trial = study.ask()
    values: Values = {}
    for name, parameter in space:
        if not is_in_force(parameter, values):
            continue
        if isinstance(parameter, Choice):
            values[name] = trial.suggest_categorical(name, list(parameter.values))
        elif isinstance(parameter, IntRange):
            values[name] = trial.suggest_int(name, parameter.low, distribution(parameter).high, step=parameter.step, log=parameter.log)
        else:
            found = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
            values[name] = min(max(float(f"{found:.6g}"), parameter.low), parameter.high)
    return values


def distribution(parameter: FloatRange | IntRange | Choice) -> Any:
    """A parameter in Optuna's terms."""
    distributions = import_optuna().distributions
    if isinstance(parameter, Choice):
        return distributions.CategoricalDistribution(list(parameter.values))
    if isinstance(parameter, IntRange):
        high = parameter.high - (parameter.high - parameter.low) % parameter.step
        return distributions.IntDistribution(parameter.low, high, log=parameter.log, step=parameter.step)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def importance(space: SweepSpace, ended: Sequence[TrialResult], maximise: bool) -> dict[str, float]:
    """How much of the score's spread each parameter explains (PED-ANOVA), the most first; empty below 4 scored trials.

    Only parameters that every trial has can be compared.
    """
    scored = sorted((trial for trial in ended if trial.score is not None), key=lambda trial: trial.number)
    names = [name for name, _ in space if all(name in trial.values for trial in scored)]
    if len(scored) < 4 or not names or len({trial.score for trial in scored}) < 2:
        return {}
    optuna = import_optuna()
    study = _study(space, scored, [], 0, maximise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingPackage("TPE is Optuna's, which is not installed: pip install 'bert-train-parallel[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
