"""GPUs of unequal speed, memory that is not enough, losses that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_train_parallel.run_files import RunFiles
from training import worlds
from training.conftest import EXACT


@pytest.fixture
def source(write_csv: Callable[..., Path]) -> Path:
    return write_csv(400)


@pytest.mark.slow
def test_a_rank_of_a_third_of_the_speed_gets_a_quarter_of_the_tokens_and_the_losses_stay(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_model, "--batch_size", "24", "--epochs", "8", "--max_steps", "50", *EXACT)
    worlds.run_world(2, source, "--run", "two", *flags, folder=tmp_path, patch=worlds.slow_second_rank)
    worlds.run_world(1, source, "--run", "one", *flags, folder=tmp_path)
    two, one = RunFiles(source.parent, "leanings-two"), RunFiles(source.parent, "leanings-one")
    world = json.loads(two.result.read_text())["world"]
    fast, slow = world["parts"]
    assert 3 / 1.15 < fast / slow < 3 * 1.15
    assert min(world["utilisation"]) > 0.8
    shares = worlds.events(two, "share")
    assert "rank 1" in shares[0].figures["words"]
    assert "times slower" in shares[0].figures["words"]
    np.testing.assert_allclose(list(worlds.losses(two).values()), list(worlds.losses(one).values()), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shares", ["3,1", "1,0"])
def test_in_float32_the_gradients_of_unequal_shares_are_those_of_one_process(
    source: Path, tiny_model: Path, tmp_path: Path, shares: str
) -> None:
    flags = ("--model", tiny_model, "--batch_size", "24", "--max_steps", "5", *EXACT, "--dtype", "float32", "--matmul", "mkl")
    kept = {}
    for ranks, chosen in ((1, "auto"), (2, shares)):
        kept[ranks] = tmp_path / str(ranks)
        kept[ranks].mkdir()
        with worlds.noted_rows(kept[ranks]):
            run = ("--run", f"of-{ranks}", "--shares", chosen)
            worlds.run_world(ranks, source, *run, *flags, folder=tmp_path, patch=worlds.note_gradients)
    # the first step's have the same weights behind them; those of later ones also differ by what rounding has made of the weights
    expected = worlds.gradients(kept[1], 0, 1)
    for rank in (0, 1):
        found = worlds.gradients(kept[2], rank, 1)
        assert len(found) == len(expected)
        greatest = max(float(values.abs().max()) for values in expected)
        off = max(float((mine - theirs).abs().max()) for mine, theirs in zip(found, expected, strict=True))
        assert greatest > 1e-3
        assert off <= 1e-6 * greatest
    losses, expected_losses = (list(worlds.losses(RunFiles(source.parent, f"leanings-of-{ranks}")).values()) for ranks in (2, 1))
    np.testing.assert_allclose(losses[:1], expected_losses[:1], rtol=1e-6)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_share_that_does_not_fit_is_computed_in_parts_with_the_same_result(
    source: Path, tiny_model: Path, tmp_path: Path, ranks: int
) -> None:
    flags = ("--model", tiny_model, "--batch_size", "8", "--max_steps", "12", "--shares", "equal", *EXACT)
    scarce = (*flags, "--run", "scarce", *(("--micro_batch_size", "2") if ranks > 1 else ()))
    worlds.run_world(ranks, source, *scarce, folder=tmp_path, patch=worlds.memory_for_few_tokens)
    worlds.run_world(1, source, "--run", "plenty", *flags, folder=tmp_path)
    found, expected = (worlds.losses(RunFiles(source.parent, f"leanings-{name}")) for name in ("scarce", "plenty"))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_rank_that_fails_alone_says_so_and_ends_while_the_others_wait_for_it(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--batch_size", "8", "--shares", "equal", *EXACT)
    patch = worlds.second_rank_has_no_memory_where_nothing_can_be_tried_again
    world = worlds.start_world(2, source, *flags, folder=tmp_path, patch=patch)
    assert world.wait(timeout=60) == [1, 4]
    assert "no memory left" in world.output(1)
    assert "Rank 0 has lost another rank" in world.output(0)
    assert "Traceback" not in world.output()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_ranks_with_a_sentence_and_the_checkpoint_before_stays_whole(
    source: Path, tiny_model: Path, tmp_path: Path
) -> None:
    files = RunFiles(source.parent, "leanings")
    flags = ("--model", tiny_model, "--batch_size", "8", "--checkpoint_every", "10", "--shares", "equal", *EXACT)
    world = worlds.start_world(2, source, *flags, folder=tmp_path, patch=worlds.loss_becomes_nan)
    assert world.wait() == [3, 3]
    said = [line for line in world.output(0).splitlines() if line.startswith("bert_train_parallel:")]
    assert len(said) == 1
    assert "--learning_rate" in said[0]
    assert "Traceback" not in world.output()
    assert [event.figures["kind"] for event in worlds.events(files, "failed")] == ["nan"]
    assert [place.name for place in sorted(files.checkpoints.glob("step_*"))] == ["step_00000010"]
    assert not files.result.exists()
    worlds.run_world(2, source, *flags, "--resume", folder=tmp_path)
    assert files.is_finished
