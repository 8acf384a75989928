"""The fleet does not change the model: what is learned depends on data, config and seed alone."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.run_files import RunFiles
from training import worlds
from training.conftest import EXACT

STEPS = 200
TWENTY_FIVE_AN_EPOCH = ("--batch_size", "13", "--epochs", "8", "--max_steps", STEPS, "--keep_checkpoints", "9", *EXACT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import csv
    import random

    from conftest import sentence

    rng = random.Random(5)
    path = tmp_path_factory.mktemp("fleets") / "leanings.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(402):
            label = rng.choice(["good", "bad"])
            writer.writerow([". ".join(sentence(rng, label) for _ in range(rng.randint(1, 4))) + f". {number}", label])
    return path


@pytest.fixture(scope="module")
def one_process(source: Path, tiny_model: Path) -> RunFiles:
    worlds.run_world(1, source, "--model", tiny_model, "--run", "one", *TWENTY_FIVE_AN_EPOCH, folder=source.parent)
    return RunFiles(source.parent, "leanings-one")


def assert_same(found: RunFiles, expected: RunFiles) -> None:
    losses, expected_losses = worlds.losses(found), worlds.losses(expected)
    assert list(losses) == list(expected_losses) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(losses.values()), list(expected_losses.values()), rtol=0, atol=1e-9)
    weights, expected_weights = worlds.weights(found, STEPS), worlds.weights(expected, STEPS)
    assert weights.keys() == expected_weights.keys()
    for name in weights:
        np.testing.assert_allclose(weights[name], expected_weights[name], rtol=0, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_two_equal_ranks_learn_what_one_process_learns(one_process: RunFiles, source: Path, tiny_model: Path) -> None:
    worlds.run_world(2, source, "--model", tiny_model, "--run", "two", "--shares", "equal", *TWENTY_FIVE_AN_EPOCH, folder=source.parent)
    assert_same(RunFiles(source.parent, "leanings-two"), one_process)


@pytest.mark.slow
def test_unequal_ranks_of_which_one_computes_nothing_learn_the_same_and_each_row_is_computed_once(
    one_process: RunFiles, source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--run", "three", "--shares", "5,0,2", "--micro_batch_size", "4", *TWENTY_FIVE_AN_EPOCH)
    with worlds.noted_rows(tmp_path) as rows:
        worlds.run_world(3, source, "--model", tiny_model, *flags, folder=source.parent, patch=worlds.note_rows)
        counts = Counter(rows())
    assert_same(RunFiles(source.parent, "leanings-three"), one_process)
    assert len(counts) == 322  # 80 % of 402 samples, of one row each
    assert set(counts.values()) == {STEPS // 25}  # once in each epoch, over all ranks


@pytest.mark.slow
def test_stopped_with_three_ranks_and_gone_on_with_two_is_the_same_run(one_process: RunFiles, source: Path, tiny_model: Path) -> None:
    flags = ("--model", tiny_model, "--run", "moved", "--checkpoint_every", "10", *TWENTY_FIVE_AN_EPOCH)
    files = RunFiles(source.parent, "leanings-moved")
    world = worlds.start_world(3, source, *flags, folder=source.parent)
    worlds.wait_for_step(files, 90)
    world.kill(signal.SIGTERM)
    assert world.wait() == [143] * 3, world.output()
    (stopped,) = {event.step for event in worlds.events(files, "checkpoint")[-1:]}
    assert 90 <= stopped < STEPS
    worlds.run_world(2, source, *flags, "--resume", folder=source.parent)
    assert [event.step for event in worlds.events(files, "resume")] == [stopped]
    assert_same(files, one_process)
