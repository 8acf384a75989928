"""The command's words: examples that are valid, mistakes in one line, and nothing loaded that is not needed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_train_parallel.sweeps.cli import _parser, main
from bert_train_parallel.sweeps.examples import example
from bert_train_parallel.sweeps.folder import SharedFolder
from bert_train_parallel.sweeps.messages import BertFineTuneConfig, CoordinatorWorkflowInput, SweepRequest
from bert_train_parallel.sweeps.requests import notes_on, notes_on_configurations, read_configurations, read_sweep
from bert_train_parallel.sweeps.space import Choice

BASE = {"fine_tune_config": {"dataset_name": "leanings.csv"}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("kind", ["random", "ladder", "coordinate"])
def test_every_example_is_a_file_that_can_be_run(kind: str, hub: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", kind, *(["--hub"] if hub else [])]) == 0
    path = write(tmp_path, capsys.readouterr().out)
    found = read_configurations(path) if kind == "coordinate" else read_sweep(path)
    assert isinstance(found, CoordinatorWorkflowInput if kind == "coordinate" else SweepRequest)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "an object is expected. `bert_sweep example random` shows one."),
        ({"configs": [BASE]}, "Type bert_sweep coordinate "),
        ({"base": BASE, "space": {"learning_rat": [1e-5, 1e-3]}}, "Did you mean learning_rate?\n"),
        ({"base": BASE, "ladder": {"stages": [{"epochs": 2}, {"epochs": 1}]}}, "stage 2 has 1 epoch, after 2 on the one before; each"),
        ({"space": {}}, "base is missing"),
        ({"base": BASE, "num_trails": 3}, "num_trails is not a setting of a sweep"),
        ({"base": BASE, "num_trials": 0}, "num_trials: 0: should be greater than or equal to 1"),
        ({"base": BASE, "experiment_id": "../elsewhere"}, "experiment_id"),
        ({"base": BASE, "experiment_id": "bert_runs"}, "a folder that all sweeps share"),
        ({"base": BASE, "space": {"learning_rate": [1e-3, 1e-5]}}, "space"),
        ({"base": BASE, "sampler": "grid"}, 'or {"values": [1e-05, 5e-05]} for these two alone'),
        ({"base": BASE, "sampler": "grid", "ladder": {}}, "a ladder begins new trials on later rungs"),
        ({"base": BASE, "approval": True}, "only a sweep with a ladder has rungs"),
        ({"base": BASE, "ladder": {}, "space": {"epochs": [1, 2]}}, "epochs is what the rungs of a ladder decide"),
        ({"base": BASE, "direction": "minimize"}, "direction: accuracy, which is compared where no metric is named, is to be maximized"),
        ({"base": BASE | {"launch": {"here_gpus": 2}}}, "base.launch: all trials of a sweep are launched alike; write launch beside base."),
        ({"base": BASE, "sampler": "grid", "space": {"seed": {"low": 0, "high": 10000}}}, "more than 10,000 combinations; num_trials"),
        ({"base": BASE, "metric": "loss", "direction": "maximize"}, "loss is to be minimized"),
        (
            {"base": {"fine_tune_config": BASE["fine_tune_config"] | {"task_type": "regression"}}, "metric": "accuracy"},
            "metric: accuracy is not a figure of a regression; choose one of loss, mse, pearson, spearman",
        ),
        ({"base": {"fine_tune_config": {"settings": {"warmup": 3}}}}, "base.fine_tune_config: settings.warmup 3: should be less than or"),
        ({"base": {"fine_tune_config": {"num_epochs": 0}}}, "num_epochs: 0: should be greater than or equal to 1"),
        ({"base": BASE, "space": {"learning_rate": [1e-3, 1e-5]}}, "space.learning_rate: low 0.001 is above high 1e-05; swap them"),
        ({"base": BASE, "ladder": {"stages": 3}}, "ladder.stages: 3: should be a valid list"),
        (
            {"base": BASE, "experiment_id": "my sweep"},
            "experiment_id: 'my sweep': letters, digits, dots, dashes and underscores are expected, such as 'my-sweep'",
        ),
        ({"base": BASE, "launch": {"max_hours": math.inf}}, "launch.max_hours: inf is no number; write one, or leave max_hours out."),
        ({"base": BASE, "launch": {"max_hours": 1e300}}, "launch.max_hours: 1e+300: should be less than or equal to 1000000"),
        ({"base": BASE, "budget_gpu_hours": math.inf}, "budget_gpu_hours: inf is no number"),
        ({"base": {"fine_tune_config": {"settings": {"epochs": 2}}}}, "write it as num_epochs"),
        ({"base": {"fine_tune_config": {"settings": {"output_dir": "/"}}}}, "there is no such setting"),
        ({"base": BASE, "launch": {"gpu_map": {"alpha": 0}}}, "launch.gpu_map.alpha"),
        ({"base": BASE, "so_far": {"trials": 1, "concurrency": 1}}, "so_far is not a setting"),
        ('{"seed": 1, "num_trials": 8, "seed": 2}', "seed is there twice; leave one out"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_file_and_field(
    content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, content)
    assert main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.json"], "there is no such file"),
        (["fly"], "invalid choice"),
        (["worker", "--trails", "2"], "unrecognized arguments: --trails 2. Did you mean --trials? See bert_sweep worker --help."),
        (["watch", "mine", "--trials", "2"], "unrecognized arguments: --trials 2. See bert_sweep watch --help."),
        (["set_budget", "mine", "lots", "--output-dir", "x"], "not a number of GPU-hours"),
        (["set-budget", "mine", "lots"], "not a number of GPU-hours"),
        (["stop-trial", "mine", "x"], "not a whole number"),
        (["pause", "mine"], "No Temporal server answers at 127.0.0.1:9: connection refused. "),
        (["status", "../mine"], "is not the name of a sweep"),
        (["rerun", "", "1"], "is not the name of a sweep"),
        (["worker", "--queue", "training"], "No Temporal server answers"),
        (["run", "a.json", "--address", "h:1"], "bert_sweep worker --address h:1, and then bert_sweep start FILE --address h:1.\n"),
        (["coordinate", "a.json", "--namespace", "n"], "leave --namespace n out"),
        (["server", "--address", "h:1"], "--ip lets other machines reach it"),
        (["infer", "mine", "text", "--address", "h:1"], "without a server; leave --address h:1 out"),
        (["infer", "a b", "text"], "'a b' is not the name of a run"),
        (["infer", "", "text"], "'' is not the name of a run"),
        (["status", "nosuch"], "There is no sweep nosuch in bert_sweeps."),
        (["pause", "nosuch"], "There is no sweep nosuch in bert_sweeps."),
    ],
)
def test_a_mistake_in_the_words_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "no sweep" in words:  # where others were run, by a server that is down
        (tmp_path / "bert_sweeps").mkdir()
        (tmp_path / "bert_sweeps" / "server.json").write_text(json.dumps({"grpc": "127.0.0.1:9"}))
    if "No Temporal" in words:
        arguments = [*arguments, "--address", "127.0.0.1:9"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "an object is expected. `bert_sweep example coordinate` shows one."),
        ({"base": BASE}, "Type bert_sweep run "),
        ({"configs": []}, "configs: should have at least 1 item, not 0."),
        ({"configs": 3}, "configs: 3: should be a valid list"),
        ({"configs": [BASE | {"evaluation_config": {"run_id": "a"}}] * 2}, "configs: two of them have the run_id a"),
    ],
)
def test_a_mistake_in_a_file_of_configurations_is_one_line(
    content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coordinate", str(write(tmp_path, content)), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"base": BASE})
    (tmp_path / "leanings.csv").write_text("text,label\na,b\n")
    for folder in (path, Path("/proc/nowhere")):
        assert main(["run", str(path), "--output_dir", str(folder)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{folder}/mine" in said
        assert "--output_dir" in said


@pytest.mark.parametrize("field", ["dataset_name", "validation_file", "test_file"])
@pytest.mark.parametrize("command", ["run", "coordinate"])
def test_data_that_is_not_there_is_told_before_a_server_starts(
    command: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leanings.csv").write_text("text,label\na,b\n")
    base = {"fine_tune_config": {"dataset_name": "leanings.csv", field: "leaning.csv"}}
    path = write(tmp_path, {"base": base} if command == "run" else {"configs": [base]})
    assert main([command, str(path), "--output_dir", str(tmp_path / "mine")]) == 2
    assert f"{path}: {field}: leaning.csv: there is no such file." in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_where_no_sweep_was_run_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bert_train_parallel.errors import Unreachable
    from bert_train_parallel.sweeps import server

    async def nobody(*_: Any) -> None:
        raise Unreachable("No Temporal server answers.")

    monkeypatch.setattr(server, "connect", nobody)
    monkeypatch.setattr(server, "is_configured", lambda: False)
    arguments = _parser().parse_args(["watch", "mine", "--output_dir", str(tmp_path / "elsewhere")])
    with pytest.raises(Unreachable, match="elsewhere has no server"):
        arguments.body(arguments)


def test_the_command_ends_without_the_finalisation_that_threads_of_temporal_abort(server: str, tmp_path: Path) -> None:
    words = ["bert_sweep", "status", "nobody", "--address", server, "--output_dir", str(tmp_path)]
    code = (
        "import atexit, sys\nfrom bert_train_parallel.sweeps.cli import main\n"
        f"atexit.register(print, 'finalised')\nsys.argv = {words!r}\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no sweep nobody" in done.stderr


def test_a_file_whose_name_is_none_for_a_sweep_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sw one.json"
    path.write_text(json.dumps({"base": BASE}))
    assert main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert 'write "experiment_id": "sw-one" in it.' in capsys.readouterr().err


def test_every_message_is_whole_as_soon_as_it_is_imported() -> None:
    """One that names a later one is not, and a workflow's sandbox does not mend that."""
    code = (
        "import pydantic, bert_train_parallel.sweeps.messages as m\n"
        "kinds = [one for one in vars(m).values() if isinstance(one, type) and issubclass(one, pydantic.BaseModel)]\n"
        "print(len(kinds) > 20, [one.__name__ for one in kinds if not one.__pydantic_complete__])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def test_a_text_that_looks_like_a_flag_stays_as_it_is() -> None:
    arguments = _parser().parse_args(["infer", "mine", "--output-dir=out", "--", "--sad-gloomy table", "-x_y"])
    assert (arguments.output_dir, arguments.texts) == (Path("out"), ["--sad-gloomy table", "-x_y"])


def test_a_sweep_that_failed_before_any_trial_is_told_from_one_whose_name_begins_alike(tmp_path: Path) -> None:
    for name in ("a-two-t0000", "a-t0b", "a-tt0000"):
        (tmp_path / "bert_runs" / name).mkdir(parents=True)
    assert SharedFolder(tmp_path).trials_of("a") == []
    (tmp_path / "bert_runs" / "a-t12345-r1").mkdir()
    assert [place.name for place in SharedFolder(tmp_path).trials_of("a")] == ["a-t12345-r1"]


def test_the_byte_order_mark_of_editors_on_windows_is_no_part_of_a_sweep(tmp_path: Path) -> None:
    file = write(tmp_path, {"base": BASE, "num_trials": 3})
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_sweep(file).num_trials == 3


def test_data_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "leanings.csv").write_text("text,label\n")
    request = read_sweep(write(tmp_path, {"base": BASE}))
    assert request.base.fine_tune_config.dataset_name == str(tmp_path / "leanings.csv")
    assert request.experiment_id == "mine"


def test_a_grid_is_run_whole_unless_a_number_is_given_and_what_has_no_effect_is_told(tmp_path: Path) -> None:
    content = {"base": BASE, "sampler": "grid", "space": {"batch_size": [8, 16, 32], "seed": {"low": 0, "high": 5}}}
    whole = read_sweep(write(tmp_path, content))
    assert (whole.num_trials, notes_on(whole)) == (18, [])
    part = read_sweep(write(tmp_path, content | {"num_trials": 8}))
    assert part.num_trials == 8
    assert notes_on(part) == ["8 of 18 combinations are run, as num_trials says"]
    base = {"fine_tune_config": BASE["fine_tune_config"] | {"run_id": "own"}, "evaluation_config": {"split": "test"}}
    notes = notes_on(read_sweep(write(tmp_path, {"base": base})))
    assert [note.split(" ")[0] for note in notes] == ["run_id", "evaluation_config"]
    configs = [{"fine_tune_config": BASE["fine_tune_config"], "evaluation_config": {"max_seq_length": length}} for length in (64, 128)]
    notes = notes_on_configurations(read_configurations(write(tmp_path, {"configs": configs})))
    assert notes == ["configs.0.evaluation_config.max_seq_length 64 has no effect: a model reads 128, as in training"]


def test_what_the_rungs_of_a_ladder_decide_is_told_where_base_says_it_too(tmp_path: Path) -> None:
    tuned = {"dataset_name": "leanings.csv", "max_train_samples": 50, "num_epochs": 2}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": {"fine_tune_config": tuned}, "ladder": {}}))
    assert notes_on(read_sweep(path)) == [
        "max_train_samples and num_epochs of base have no effect on a ladder: its rungs say how long, and by how much of the data"
    ]
    for content in ({"base": {"fine_tune_config": tuned}}, example("ladder")):
        path.write_text(json.dumps(content))
        assert notes_on(read_sweep(path)) == []


def test_the_demos_sweep_file_is_accepted(tmp_path: Path) -> None:
    tuned = {"model_name": "bert-base-uncased", "dataset_name": "glue", "dataset_config_name": "sst2", "num_epochs": 1, "batch_size": 2}
    tuned |= {"learning_rate": 2e-5, "max_seq_length": 64, "use_gpu": False, "max_train_samples": 300, "max_eval_samples": 200}
    tuned |= {"shuffle_before_select": True, "seed": 42}
    measured = {"dataset_name": "glue", "dataset_config_name": "sst2", "split": "validation", "max_eval_samples": 200}
    measured |= {"max_seq_length": 64, "batch_size": 8, "use_gpu": False, "seed": 42}
    content = {
        "experiment_id": "my-sweep",
        "num_trials": 3,
        "max_concurrency": 1,
        "seed": 42,
        "base": {"fine_tune_config": tuned, "evaluation_config": measured},
        "space": {"learning_rate": [1e-5, 5e-5], "batch_size": [2, 4], "max_seq_length": [64, 128], "num_epochs": [1, 2]},
    }
    request = read_sweep(write(tmp_path, content))
    config = request.base.fine_tune_config.with_values({"sequence_len": 64, "epochs": 2}).train_config()
    assert (config.model, config.sequence_len, config.epochs, config.device) == ("bert-base-uncased", 64, 2, "cpu")


def test_a_sweep_that_has_ended_is_told_at_once_and_another_under_its_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"base": BASE})
    request = read_sweep(path)
    place = tmp_path / "out" / "mine"
    (place / "report").mkdir(parents=True)
    (place / "report" / "report.html").touch()
    trial = {"number": 3, "run_id": "mine-t0003", "score": 0.9, "values": {"learning_rate": 1e-4}, "steps": 10}
    result = {"experiment_id": "mine", "best_run_id": "mine-t0003", "best_score": 0.9, "leaderboard": [trial], "trials": 8}
    (place / "RESULT.json").write_text(json.dumps({"request": request.model_dump(mode="json"), "result": result}))
    assert main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 0
    assert "best: mine-t0003, accuracy 0.9000" in capsys.readouterr().out
    assert main(["pause", "mine", "--output_dir", str(tmp_path / "out")]) == 2
    assert "mine has ended" in capsys.readouterr().err
    write(tmp_path, {"base": BASE, "seed": 7})
    assert main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "seed (was 42, is now 7)" in capsys.readouterr().err


def test_a_damaged_request_is_one_line_that_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"base": BASE})
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "request.json").write_text('{"experiment_id": "mi')
    assert main(["run", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "mine/request.json is damaged, or of another version. Remove it, and run the sweep again" in said
    assert said.count("\n") == 1


def test_help_loads_neither_temporal_nor_optuna_nor_torch() -> None:
    code = (
        "import sys\nfrom bert_train_parallel.sweeps.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*{'temporalio', 'optuna', 'torch', 'numpy'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "set-concurrency" in done.stdout
    assert done.stderr.strip() == ""


def test_a_missing_package_is_named_with_its_install_line(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['temporalio'] = None\nfrom bert_train_parallel.sweeps.cli import main\n"
        f"sys.exit(main(['run', {str(write(tmp_path, {'base': BASE}))!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'bert-train-parallel[sweep]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_set_concurrency_is_not_held_back_by_the_number_that_the_file_asked_for(tmp_path: Path) -> None:
    from bert_train_parallel.sweeps.run import most_at_once

    tuned = BASE["fine_tune_config"] | {"use_gpu": False}
    assert most_at_once(read_sweep(write(tmp_path, {"base": {"fine_tune_config": tuned}, "max_concurrency": 2}))) >= 1000


def test_settings_of_a_trial_reach_the_trainer_under_its_own_names() -> None:
    config = BertFineTuneConfig(settings={"weight_decay": 0.1}).with_values({"learning_rate": 1e-3, "warmup": 0.2, "sequence_len": 64})
    found = config.train_config()
    assert (found.learning_rate, found.warmup, found.sequence_len, found.weight_decay, found.shares) == (1e-3, 0.2, 64, 0.1, "equal")


@pytest.mark.parametrize("spelled", ["model_name", "model"])
def test_models_that_a_sweep_chooses_among_are_looked_for_beside_its_file(spelled: str, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    tiny, hub = str(tmp_path.resolve() / "tiny"), "bert-base-uncased"
    for choice in (["./tiny", hub], {"values": ["tiny", hub]}):
        space = {spelled: choice, "dropout": {"values": [0.1, 0.2], "when": {spelled: "./tiny"}}}
        found = dict(read_sweep(write(tmp_path, {"base": BASE, "space": space})).space)
        assert found["model"] == Choice(values=(tiny, hub))
        assert found["dropout"].when == {"model": (tiny,)}
