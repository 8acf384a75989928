"""The command with a real server, a real worker and real trainings of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.sweeps.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def test_a_given_configuration_is_trained_evaluated_and_used(
    tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = {"model_name": str(tiny_model), "dataset_name": str(write_csv(160)), "num_epochs": 5, "batch_size": 8, "learning_rate": 8e-3}
    wrong = tuned | {"text_field": "tweet"}
    path = tmp_path / "runs.json"
    configs = [{"run_id": "mine", "fine_tune_config": tuned}, {"run_id": "wrong", "fine_tune_config": wrong}]
    path.write_text(json.dumps({"configs": configs}))
    out = ["--output_dir", str(tmp_path / "out")]
    assert main(["coordinate", str(path), *out]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("mine  ")
    assert "accuracy" in said[-2]
    assert "16 samples of validation" in said[-2]
    assert said[-1].startswith("wrong  ")
    assert "tweet" in said[-1]
    found = json.loads(next((tmp_path / "out" / "bert_runs" / "mine").glob("*_RESULT.json")).read_text())
    assert f"accuracy {found['figures']['validate']['accuracy']:.4f}" in said[-2]

    assert main(["infer", "mine", "the dog loved the long film", "her brother hated this town", *out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["good", "bad"]
    assert main(["infer", "nobody", "some text", *out]) == 2
    assert "has no finished run" in capsys.readouterr().err
