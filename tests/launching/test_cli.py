"""Flags of the launcher: each mistake is one line and exit code 2, and nothing is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_train_parallel.errors import BadGpuMap, BadSetting
from bert_train_parallel.launching.cli import read_arguments, read_request

from .conftest import Launcher


@pytest.mark.parametrize(
    "words, said",
    [
        (["--here_gpus", "0", "a.py"], "--here_gpus"),
        (["--here_gpus", "-1", "a.py"], "--here_gpus"),
        (["--here_gpus", "x", "a.py"], "--here_gpus"),
        (["--here_gpus"], "--here_gpus"),
        (["--other_gpus", "-2", "a.py"], "--other_gpus -2"),
        (["--other_gpus", "none.json", "a.py"], "none.json"),
        (["--gpu_map", "none.json", "a.py"], "none.json"),
        (["--gpu_map", "a.json", "--other_gpus", "1", "a.py"], "--gpu_map and --other_gpus"),
        (["--node_rank", "1", "a.py"], "--node_rank 1"),
        (["--elastic", "a.py"], "--elastic"),
        (["--other_gpus=--5", "a.py"], "--other_gpus '--5'"),
        (["--other_gpus=\u00b2", "a.py"], "--other_gpus '\u00b2'"),
        (["--other_gpus=+1", "a.py"], "--other_gpus '+1'"),
        (["--other_gpus= 1", "a.py"], "--other_gpus ' 1'"),
        (["--other_gpus=1.5", "a.py"], "--other_gpus '1.5'"),
        (["--other_gpus=", "a.py"], "--other_gpus ''"),
        (["--other_gpus", "99999999999", "a.py"], "--other_gpus 99999999999:"),
        (["--other_gpus", "1048577", "a.py"], "from 0 to 1048576"),
        (["--here_gpus", "\u00b2", "a.py"], "--here_gpus"),
        (["--here_gpus=--5", "a.py"], "--here_gpus"),
        (["--here_gpus", "4097", "a.py"], "from 1 to 4096"),
        (["--max_restarts", "1" * 5000, "a.py"], "--max_restarts"),
        (["--gpu_map", "", "a.py"], "--gpu_map is empty"),
        (["--job_token", "", "--other_gpus", "1", "a.py"], "--job_token is empty"),
        (["--job_token_file", "", "--other_gpus", "1", "a.py"], "--job_token_file is empty"),
        (["--ssh_user", "me", "--gpu_map", '{"localhost": 1}', "a.py"], "Add --ssh"),
        (["--ssh_option", "Port=22", "a.py"], "Add --ssh"),
        (["--master_addr", "192.0.2.7", "a.py"], "--master_addr 192.0.2.7 is another machine"),
        (["--master_addr", "no.such.host.invalid", "a.py"], "'no.such.host.invalid' has no address"),
        (["--master_port", "70000", "a.py"], "--master_port"),
        (["--other_gpus", "1", "--master_addr", "alpha:29500", "a.py"], "--master_port gives its port"),
        (["--other_gpus", "1", "--master_addr", "[fd00::7]:29500", "a.py"], "--master_port gives its port"),
        (["--other_gpus", "1", "--master_addr", "", "a.py"], "--master_addr ''"),
        (["--grace", "soon", "a.py"], "--grace"),
        (["--device", "tpu", "a.py"], "--device"),
        (["--unknown", "a.py"], "--unknown"),
        (["--ssh", "a.py"], "--gpu_map"),
        (["--job_token", "x", "--job_token_file", "y", "a.py"], "--job_token"),
        (["--job_token_file", "none", "a.py"], "none"),
        (["-m", "--no_python", "a.py"], "-m and --no_python"),
        (["none.py"], "none.py: no such file"),
        (["folder"], "folder is a folder"),
        (["--no_python", "a.py"], "chmod +x a.py"),
        (["--no_python", "no-such-program"], "no-such-program"),
        (["--no_python", "bad.sh"], "bad.sh cannot be started"),
        ([], "nothing to launch"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(launcher: Launcher, words: list[str], said: str) -> None:
    launcher.script("open('started', 'w')", "a.py")
    (launcher.folder / "folder").mkdir()
    launcher.script("#!/no/such/interpreter\n", "bad.sh")
    (launcher.folder / "bad.sh").chmod(0o755)
    launch = launcher.run("-q", *words)
    assert launch.process.returncode == 2
    assert len(launch.err.splitlines()) == 1, launch.err
    assert said in launch.err
    assert launch.out == ""
    assert not (launcher.folder / "started").exists()


def test_flags_for_several_machines_that_do_no_harm_to_one_are_told_and_it_runs(launcher: Launcher) -> None:
    script = launcher.script("print('ran')")
    flags = ["--node_rank", "0", "--master_addr", "localhost", "--host", "me", "--send_data"]
    launch = launcher.run(*flags, script)
    assert (launch.process.returncode, launch.out) == (0, "ran\n"), launch.err
    assert "this machine is alone, so --master_addr, --node_rank, --host, --send_data changes nothing" in launch.err
    assert "alone" not in launcher.run("-q", *flags, script).err
    assert "alone" not in launcher.run(script).err


def test_a_dry_run_shows_ranks_variables_and_command_and_starts_nothing(launcher: Launcher) -> None:
    launcher.script("open('started', 'w')", "a.py")
    for spelling in ("--dry_run", "--dry-run"):
        launch = launcher.run(spelling, "--here_gpus", "3", "a.py", "--epochs", "2")
        assert launch.process.returncode == 0
        for words in ("0-2", "CPU", "a.py --epochs 2", "WORLD_SIZE=3", "MASTER_PORT="):
            assert words in launch.out
    assert not (launcher.folder / "started").exists()


def test_a_dry_run_of_a_map_shows_every_node_with_its_ranks(launcher: Launcher) -> None:
    launcher.script("", "a.py")
    launcher.script('{"alpha": 2, "localhost": 3}', "gpus.json")
    launch = launcher.run("--dry_run", "--gpu_map", "gpus.json", "--host", "localhost", "a.py")
    rows = [line.split() for line in launch.out.splitlines()[:3]]
    assert [row[0::2][:2] for row in rows] == [["node", "ranks"], ["0", "0-1"], ["1", "2-4"]], launch.err
    assert "RANK=2" in launch.out


def test_the_map_may_be_named_by_either_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").touch()
    Path("gpus.json").write_text('{"alpha": 2, "127.0.0.1": 3}')
    requests = [
        read_request(read_arguments([flag, "gpus.json", "--host", "alpha", "a.py"])) for flag in ("--gpu_map", "--other_gpus", "--gpu-map")
    ]
    assert requests[0] == requests[1] == requests[2]
    assert (requests[0].gpu_map, requests[0].node_rank, requests[0].here) == ({"alpha": 2, "127.0.0.1": 3}, 0, 2)


def test_the_byte_order_mark_of_editors_on_windows_is_no_part_of_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").touch()
    Path("token").write_text("secret\n", encoding="utf-8-sig")
    assert read_request(read_arguments(["--job_token_file", "token", "--other_gpus", "1", "a.py"])).job_token == "secret"


def test_our_trainer_is_known_by_name_and_no_file_shadows_the_package(launcher: Launcher) -> None:
    (launcher.folder / "bert_train_parallel").mkdir()  # as where this project was cloned
    for name in ("bert_train_parallel.py", "bert_train_parallel"):
        launch = launcher.run(name, "--help")
        assert launch.process.returncode == 0, launch.err
        assert "--epochs" in launch.out
    launcher.script("print('my own file')", "bert_train_parallel.py")
    assert launcher.run("bert_train_parallel.py").out == "my own file\n"


def test_the_output_of_our_trainer_is_kept_beside_its_run(launcher: Launcher, write_csv: Callable[..., Path], tiny_tokenizer: Path) -> None:
    words = ["bert_train_parallel.py", "--preponly", "--model", str(tiny_tokenizer), "--run", "first", write_csv(40).name]
    launch = launcher.run("--here_gpus", "2", *words)
    assert launch.process.returncode == 0, launch.err
    assert [log.name for log in sorted(launcher.folder.glob("leanings-first_logs/*/*"))] == ["rank_0.log", "rank_1.log"]


def test_a_users_mistake_leaves_the_folder_as_it_was(launcher: Launcher, write_csv: Callable[..., Path], tiny_tokenizer: Path) -> None:
    words = ["bert_train_parallel.py", "--preponly", "--model", str(tiny_tokenizer), "-l", "no_such_column", write_csv(40).name]
    launch = launcher.run("-q", "--here_gpus", "2", *words)
    assert launch.process.returncode == 2
    assert launch.err.count("no_such_column") == 1, launch.err
    assert [path.name for path in launcher.folder.iterdir() if not path.name.startswith("streams-")] == ["leanings.csv"]


def test_a_folder_for_logs_that_cannot_be_made_is_said(launcher: Launcher) -> None:
    launch = launcher.run("-q", "--log_dir", "script.py/logs", launcher.script(""))
    assert launch.process.returncode == 2
    assert "--log_dir" in launch.err
    assert len(launch.err.splitlines()) == 1


def test_a_script_that_is_not_ours_leaves_no_log_when_it_ends_well(launcher: Launcher) -> None:
    script = launcher.script("import sys; sys.exit(int(sys.argv[1]))")
    launcher.run(script, "0")
    assert list(launcher.folder.glob("launch-*")) == []
    launcher.run(script, "1")
    assert list(launcher.folder.glob("launch-*")) == []  # it failed, and has printed nothing that is to be kept
    (launcher.folder / launcher.script("#!/nowhere/interpreter", "program")).chmod(0o755)
    assert "cannot be started" in launcher.run("--no_python", "./program").err
    assert list(launcher.folder.glob("launch-*")) == []


def test_what_a_script_that_is_not_ours_printed_before_it_failed_is_kept_and_named_by_a_quiet_launch_too(launcher: Launcher) -> None:
    script = launcher.script("import sys; print('here I am'); sys.exit(1)")
    failed = launcher.run("-q", script)
    log = Path(failed.err.strip().rpartition(" ")[2])
    assert log.read_text() == "here I am\n", failed.err
    assert log.parent.parent.parent == launcher.folder


def test_what_was_printed_before_a_launch_was_stopped_is_kept_and_named(launcher: Launcher) -> None:
    launch = launcher.start(launcher.script("import time; print('here I am'); time.sleep(60)"))
    launch.wait_for("here I am")
    launch.process.terminate()
    assert launch.wait() == 143
    folder = Path(launch.err.strip().rpartition(" ")[2])
    assert (folder / "rank_0.log").read_text() == "here I am\n", launch.err


def test_a_port_that_is_taken_is_said_before_anything_starts(launcher: Launcher) -> None:
    import socket

    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        launch = launcher.run("-q", "--master_port", str(port), launcher.script(""))
    assert launch.process.returncode == 2
    assert f"port {port}" in launch.err


def test_help_loads_the_standard_library_alone() -> None:
    code = "import sys, bert_train_parallel.launching.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"torch", "numpy", "pydantic", "asyncio", "pynvml"}


def test_contradictions_are_found_without_starting_anything() -> None:
    with pytest.raises(BadGpuMap):
        read_request(read_arguments(["--other_gpus", "-1", "-m", "x"]))
    with pytest.raises(BadSetting):
        read_arguments(["--max_restarts", "many", "-m", "x"])
