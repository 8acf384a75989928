"""The search space: what is accepted, what is refused and how that is said."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bert_train_parallel.sweeps.draw import configurations, draw_new, draw_random, draws, grid, key_of, value_at, why_no_more
from bert_train_parallel.sweeps.space import Choice, FloatRange, IntRange, SweepSpace


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rate": [1e-3, 1e-5]}, "low 0.001 is above high 1e-05"),
        ({"batch_size": {"low": 32, "high": 16}}, "low 32 is above high 16"),
        ({"warmup": {"low": 0.0, "high": 0.5, "log": True}}, "begins above 0"),
        ({"batch_size": [16, 16]}, "16 is there twice"),
        ({"warmup": {"low": 0.0, "high": 0.5, "num": 10**9}}, "less than or equal to 10000"),
        ({"batch_size": []}, "at least 1 item"),
        ({"batchsize": [16]}, "Did you mean batch_size"),
        ({"metric": ["loss", "accuracy"]}, "metric cannot be searched"),
        ({"dataset_config": ["sst2", "mnli"]}, "dataset_config cannot be searched"),
        ({"batch_size": [0, 16]}, "batch_size: 0: should be greater than or equal to 1"),
        ({"schedule": ["linear", "quadratic"]}, "quadratic"),
        ({"learning_rate": 1e-4}, "a fixed value belongs to base"),
        ({"warmup": {"low": 0, "high": 0.1, "when": {"schedule": "linear"}}}, "warmup depends on schedule, which is not"),
        ({"warmup": {"low": 0, "high": 0.1, "when": {"schedule": "cosine"}}, "schedule": ["linear"]}, "which schedule never is"),
        ({"epochs": [1, 2], "num_epochs": [3]}, "under two names"),
        ({}, "nothing to search"),
        ({"dropout": [None, 0.1]}, "dropout: null is no choice"),
        ({"batch_size": {"min": 8, "max": 64}}, 'batch_size: write {"low": 1, "high": 4} for a range'),
        ({"warmup": {"low": 0.0, "high": 0.5, "step": 0.1}}, "warmup: step is for whole numbers; num says"),
        ({"batch_size": {"low": 8, "high": 64, "step": 8, "num": 3}}, "leave one of them out"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_words(space: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        SweepSpace.model_validate(space)
    assert words in str(error.value)


def test_parameters_that_depend_on_each_other_in_a_circle_are_refused() -> None:
    space = {
        "schedule": {"values": ["linear", "constant"], "when": {"row_weights": "rows"}},
        "row_weights": {"values": ["rows", "samples"], "when": {"schedule": "linear"}},
    }
    with pytest.raises(ValidationError, match="in a circle"):
        SweepSpace.model_validate(space)


def test_the_demos_space_is_understood() -> None:
    space = SweepSpace.model_validate(
        {"learning_rate": [1e-5, 5e-5], "batch_size": [2, 4], "max_seq_length": [64, 128], "num_epochs": [1, 2]}
    )
    assert dict(space)["learning_rate"] == FloatRange(low=1e-5, high=5e-5, log=True)
    assert dict(space)["sequence_len"] == Choice(values=(64, 128))
    assert dict(space)["epochs"] == Choice(values=(1, 2))


@pytest.mark.parametrize("ends", [{"low": 1.0, "high": 4.0}, {"type": "float", "low": 1, "high": 4}, {"low": 1, "high": 4}])
def test_a_setting_that_takes_whole_numbers_is_drawn_as_one_however_its_ends_are_written(ends: dict[str, object]) -> None:
    assert dict(SweepSpace.model_validate({"num_epochs": ends}))["epochs"] == IntRange(low=1, high=4)
    with pytest.raises(ValidationError, match=r"epochs: 4\.5: should be a valid integer"):
        SweepSpace.model_validate({"epochs": ends | {"high": 4.5}})


def test_a_parameter_counts_only_under_the_values_that_it_depends_on() -> None:
    space = SweepSpace(schedule=["linear", "constant"], warmup={"low": 0.0, "high": 0.2, "when": {"schedule": "linear"}})
    drawn = [draw_random(space, 7, number) for number in range(40)]
    assert {values["schedule"] for values in drawn} == {"linear", "constant"}
    assert all(("warmup" in values) == (values["schedule"] == "linear") for values in drawn)


def test_a_draw_is_the_same_in_every_process_and_independent_of_other_parameters() -> None:
    space = {"learning_rate": [1e-5, 1e-3], "batch_size": [16, 32]}
    code = (
        "from bert_train_parallel.sweeps.draw import draw_random; from bert_train_parallel.sweeps.space import SweepSpace;"
        f"print(draw_random(SweepSpace.model_validate({space!r}), 42, 3))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = draw_random(SweepSpace.model_validate(space), 42, 3)
    assert said == str(here)
    larger = draw_random(SweepSpace.model_validate(space | {"warmup": {"low": 0.0, "high": 0.2}}), 42, 3)
    assert {name: larger[name] for name in here} == here


@given(low=st.floats(1e-9, 1e3), factor=st.floats(1.0, 1e6), log=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_a_float_is_within_its_range(low: float, factor: float, log: bool, share: float) -> None:
    found = value_at(FloatRange(low=low, high=low * factor, log=log), share)
    assert low <= float(found) <= low * factor


@given(
    low=st.integers(1, 1000), span=st.integers(0, 5000), step=st.integers(1, 7), log=st.booleans(), share=st.floats(0, 1, exclude_max=True)
)
def test_a_whole_number_is_within_its_range_and_on_a_step(low: int, span: int, step: int, log: bool, share: float) -> None:
    parameter = IntRange(low=low, high=low + span, log=log, step=1 if log else step)
    found = value_at(parameter, share)
    assert isinstance(found, int)
    assert low <= found <= low + span
    assert (found - low) % parameter.step == 0


def test_a_grid_without_a_number_of_floats_says_which() -> None:
    with pytest.raises(ValueError, match="learning_rate: a grid needs to know how many"):
        list(grid(SweepSpace(learning_rate=[1e-5, 1e-3])))


def test_a_grid_takes_as_many_whole_numbers_of_a_range_as_num_says() -> None:
    space = SweepSpace.model_validate({"batch_size": {"low": 8, "high": 64, "num": 3}, "num_epochs": {"low": 1, "high": 2, "num": 5}})
    assert [(values["batch_size"], values["epochs"]) for values in grid(space)] == [(b, e) for b in (8, 36, 64) for e in (1, 2)]


def test_a_grid_over_a_space_that_never_ends_begins_at_once() -> None:
    deep = {"low": 0.01, "high": 0.5, "num": 9, "when": {"schedule": "linear"}}
    names = ("warmup", "weight_decay", "clip_norm", "dropout", "attention_dropout")
    conditional = SweepSpace.model_validate({"schedule": ["constant", "linear"], "combine": ["mean", "vote"], **dict.fromkeys(names, deep)})
    wide = SweepSpace.model_validate({"seed": {"low": 0, "high": 10**12}, "warmup": {"low": 0.0, "high": 0.5, "num": 9}})
    began = time.monotonic()
    first = list(itertools.islice(grid(conditional), 4))
    assert [values["schedule"] for values in first] == ["constant", "constant", "linear", "linear"]
    assert [values.get("weight_decay") for values in first] == [None, None, 0.01, 0.07125]
    assert next(grid(wide)) == {"seed": 0, "warmup": 0.0}
    assert time.monotonic() - began < 1


SMALL = SweepSpace(batch_size=[8, 16, 32], epochs={"low": 1, "high": 4})


def test_no_configuration_of_a_small_space_is_drawn_twice_and_each_is_drawn() -> None:
    drawn = list(draws(SMALL, 5))
    assert len({key_of(values) for values in drawn}) == len(drawn) == 12
    assert drawn == list(draws(SMALL, 5)) != list(draws(SMALL, 6))
    assert drawn[0] == draw_random(SMALL, 5, 0)  # what is new at once is as it always was
    assert len({key_of(draw_random(SMALL, 5, number)) for number in range(12)}) < 12


def test_what_is_drawn_goes_on_from_any_number() -> None:
    assert list(itertools.islice(draws(SMALL, 5), 7, 20)) == list(draws(SMALL, 5))[7:]


def test_a_branch_without_other_parameters_is_drawn_once_beside_one_that_never_ends() -> None:
    space = SweepSpace(schedule=["linear", "constant"], warmup={"low": 0.0, "high": 0.2, "when": {"schedule": "linear"}})
    assert configurations(space) is None
    drawn = list(itertools.islice(draws(space, 7), 40))
    assert [values["schedule"] for values in drawn].count("constant") == 1
    assert len({key_of(values) for values in drawn}) == 40


@given(count=st.integers(1, 5), high=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_space_is_drawn_to_its_end_whatever_its_size(count: int, high: int, seed: int) -> None:
    when = {"low": 1, "high": high, "when": {"batch_size": [8]}}
    space = SweepSpace.model_validate({"batch_size": [8 * (place + 1) for place in range(count)], "epochs": when})
    everything = configurations(space)
    assert everything is not None
    assert len(everything) == count - 1 + high
    assert sorted(map(key_of, draws(space, seed))) == sorted(map(key_of, everything))


def test_a_draw_that_is_taken_is_followed_by_another_and_by_none_when_nothing_is_left() -> None:
    taken = {key_of(values) for values in configurations(SMALL) or ()} - {key_of({"batch_size": 16, "epochs": 3})}
    assert draw_new(SMALL, 5, 0, taken) == {"batch_size": 16, "epochs": 3}
    assert draw_new(SMALL, 5, 0, taken | {key_of({"batch_size": 16, "epochs": 3})}) is None
    assert why_no_more(SMALL) == "the space holds 12 configurations, and none is trained twice"
