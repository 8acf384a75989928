"""Training over several hosts comes to the same model as on one, also when a host is lost on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .fleet import Host, Run, until
from .launches import everything

EXACT = ["--dtype", "float64", "--dropout", "0", "--epochs", "2", "--batch_size", "16", "--sequence_len", "32", "--seed", "5"]


def train(hosts: list[Host], gpu_map: dict[str, int], source: Path, model: Path, *flags: str, more: tuple[str, ...] = ()) -> list[Run]:
    runs = []
    for host in hosts:
        shutil.copy(source, host.folder / source.name)
        trainer = ["bert_train_parallel.py", source.name, "--model", str(model), *EXACT, "--quiet_progress", "--log_every", "1", *more]
        runs.append(host.launch("--gpu_map", json.dumps(gpu_map), "--device", "cpu", *flags, *trainer, "--checkpoint_every", "5"))
    return runs


def losses(host: Host) -> dict[int, float]:
    """The training loss of every step, as rank 0 logged it; of a step that was done twice, the later one."""
    found = {}
    for path in host.folder.glob("*_progress.jsonl"):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["kind"] == "step":
                found[event["step"]] = event["figures"]["loss"]
    return found


def last_weights(host: Host) -> dict[str, Any]:
    """The weights of the newest checkpoint there, in the precision of training."""
    from safetensors.numpy import load_file

    return load_file(max(host.folder.glob("*_checkpoints/step_*")) / "model.safetensors")


@pytest.mark.slow
def test_a_host_lost_on_the_way_changes_neither_losses_nor_weights(
    hosts: list[Host], tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_csv(160)
    alone = train(hosts[2:3], {"gamma": 1}, source, tiny_model)
    assert alone[0].wait(200) == 0, alone[0].text
    runs = train(hosts[:2], {"alpha": 2, "beta": 1}, source, tiny_model, "--elastic", more=("--shares", "2,1,3"))
    undisturbed = losses(hosts[2])
    until(lambda: len(losses(hosts[0])) >= len(undisturbed) // 3 or runs[0].process.poll() is not None, 200, lambda: everything(runs))
    assert len(losses(hosts[0])) < len(undisturbed), everything(runs)
    hosts[1].kill()
    assert runs[0].wait(200) == 0, everything(runs)
    assert "starting again without beta (--elastic)" in runs[0].text, everything(runs)
    assert "the ranks that are left keep their numbers, 2,1" in runs[0].text, everything(runs)
    found = losses(hosts[0])
    assert found.keys() == undisturbed.keys()
    assert max(abs(found[step] - undisturbed[step]) for step in found) < 1e-9
    weights, expected = last_weights(hosts[0]), last_weights(hosts[2])
    assert weights.keys() == expected.keys()
    for name in weights:
        np.testing.assert_allclose(weights[name], expected[name], rtol=0, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_after_a_lost_master_the_line_that_the_others_are_told_goes_on(
    hosts: list[Host], tiny_model: Path, write_csv: Callable[..., Path]
) -> None:
    source, gpu_map = write_csv(160), {"alpha": 1, "beta": 1}
    runs = train(hosts[:2], gpu_map, source, tiny_model)
    until(lambda: any(hosts[0].folder.glob("*_checkpoints/step_*/")), 200, lambda: everything(runs))
    until(lambda: len(losses(hosts[0])) > 6, 200, lambda: everything(runs))
    hosts[0].kill()
    assert runs[1].wait(30) == 1, everything(runs)
    assert "Start the same line again with --resume on every node" in runs[1].text, everything(runs)
    again = train(hosts[:2], gpu_map, source, tiny_model, more=("--resume",))
    assert [run.wait(200) for run in again] == [0, 0], everything(again)
    assert "leanings goes on after step" in again[0].text, everything(again)
    assert [path.name for path in hosts[0].folder.glob("*_RESULT.json")] == ["leanings_RESULT.json"]
