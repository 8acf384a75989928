"""Real launches on this machine: what ranks see, what is printed, and that no process is left whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT, Launcher, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of process trees is best effort")

SLEEPER = "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n"

# A rank with a child, a grandchild in a session of its own, and a great-grandchild that has lost its parent (a daemon).
FAMILY = """
import os, subprocess, sys, time
code = '''
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    os._exit(0)
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
subprocess.Popen(["sleep", "600"])
time.sleep(0.3)
print("ready", flush=True)
time.sleep(600)
"""

STUBBORN = """
import signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
time.sleep(0.2)
print("ready", flush=True)
time.sleep(600)
"""


def test_every_rank_knows_who_it_is(launcher: Launcher) -> None:
    own = ["RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"]
    names = [*own, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "BERT_TRAIN_DEVICE"]
    script = launcher.script(f"import json, os; print(json.dumps([os.environ.get(name) for name in {names}]), os.environ['MASTER_PORT'])")
    launch = launcher.run("--here_gpus", "3", script)
    assert launch.process.returncode == 0, launch.err
    lines = sorted(line.partition("] ")[2] for line in launch.out.splitlines())
    assert [json.loads(line.rpartition(" ")[0]) for line in lines] == [
        [str(rank), str(rank), "0", "0", "3", "3", "1", "127.0.0.1", "cpu"] for rank in range(3)
    ]
    assert len({line.rpartition(" ")[2] for line in lines}) == 1


def test_a_launch_ends_where_there_is_neither_waitid_nor_proc(launcher: Launcher) -> None:
    launcher.script("import os\ndel os.waitid\nfrom bert_train_parallel import processes\nprocesses._LINUX = False\n", "sitecustomize.py")
    script = launcher.script("import os, sys\nsys.exit(3 * int(os.environ['RANK']))")
    as_on_a_mac = {"PYTHONPATH": f"{launcher.folder}{os.pathsep}{ROOT}"}  # with a Python before 3.13
    launch = launcher.start("--here_gpus", "2", script, **as_on_a_mac)
    assert launch.wait(20.0) == 3, launch.err
    assert "rank 1 on" in launch.err


def test_cores_are_shared_unless_the_user_has_set_the_threads(launcher: Launcher) -> None:
    script = launcher.script("import os; print(os.environ['OMP_NUM_THREADS'], os.environ.get('OMP_WAIT_POLICY'))")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    expected = max(1, len(os.sched_getaffinity(0)) // 2)
    launch = launcher.run("--here_gpus", "2", script, OMP_WAIT_POLICY=environment.get("OMP_WAIT_POLICY", "passive"))
    assert launch.out.count(f"{expected} passive") == 2
    assert launcher.run("--here_gpus", "2", script, OMP_NUM_THREADS="7").out.count("] 7 ") == 2


def test_arguments_reach_the_script_as_they_were_typed(launcher: Launcher) -> None:
    script = launcher.script("import sys; print(sys.argv[1:])")
    assert launcher.run(script, "--here-gpus", "x", "--a_b-c=d e", "--", "-q").out == "['--here-gpus', 'x', '--a_b-c=d e', '--', '-q']\n"


def test_the_first_rank_reads_standard_input_and_the_others_have_none(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("from the user")
    script = launcher.script("import sys; print(repr(sys.stdin.read()))")
    with open(tmp_path / "input", "rb") as file:
        launch = launcher.start("--here_gpus", "2", script, stdin=file.fileno())
    assert launch.wait() == 0
    assert sorted(launch.out.splitlines()) == ["[rank 0] 'from the user'", "[rank 1] ''"]


@pytest.mark.parametrize(
    "words, text",
    [
        (["-m", "helper", "1"], "module 1"),
        (["--no_python", "./tool.sh", "2"], "shell 2"),
        (["tool.sh", "3"], "shell 3"),
        (["--no_python", "printf", "printed"], "printed"),
        (["plain", "4"], "python 4"),
    ],
)
def test_modules_programs_and_scripts_without_an_ending_all_run(launcher: Launcher, words: list[str], text: str) -> None:
    launcher.script("import sys; print('module', sys.argv[1])", "helper.py")
    launcher.script("import sys; print('python', sys.argv[1])", "plain")
    launcher.script("#!/bin/sh\necho shell $1\n", "tool.sh")
    (launcher.folder / "tool.sh").chmod(0o755)
    launch = launcher.run(*words)
    assert (launch.process.returncode, launch.out.strip()) == (0, text), launch.err


def test_the_exit_code_is_that_of_the_first_failure_and_the_message_has_its_traceback(launcher: Launcher) -> None:
    script = launcher.script(
        "import os, sys, time\n"
        "def train():\n    raise ValueError('the data ran out')\n"
        "if os.environ['RANK'] == '1':\n    train()\n"
        "time.sleep(600)\n"
    )
    launch = launcher.run("--here_gpus", "3", script)
    assert launch.process.returncode == 1
    assert "launch: rank 1 on " in launch.err
    assert "failed with exit code 1" in launch.err
    assert "  ValueError: the data ran out" in launch.err


def test_an_exit_code_of_the_script_is_passed_on(launcher: Launcher) -> None:
    assert launcher.run(launcher.script("import sys; sys.exit(42)")).process.returncode == 42


def test_a_rank_that_was_killed_is_named_and_its_siblings_end(launcher: Launcher) -> None:
    launch = launcher.start("--here_gpus", "2", launcher.script(SLEEPER))
    launch.wait_for("pid ", 2)
    victim = next(int(line.split()[-1]) for line in launch.out.splitlines() if line.startswith("[rank 1]"))
    os.kill(victim, signal.SIGKILL)
    assert launch.wait(5.0) == 137
    assert f"rank 1 on {os.uname().nodename} (pid {victim}) was killed by SIGKILL" in launch.err


def test_a_peer_that_only_lost_its_connection_is_not_reported_as_the_first(launcher: Launcher) -> None:
    script = launcher.script(
        "import os, socket, sys, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    with socket.create_server(('', 0)) as server:\n"
        "        open('port.part', 'w').write(str(server.getsockname()[1])); os.rename('port.part', 'port')\n"
        "        peer, _ = server.accept()\n"
        "        if not peer.recv(1):\n            raise ConnectionResetError('Connection reset by peer')\n"
        "while not os.path.exists('port'):\n    time.sleep(0.01)\n"
        "peer = socket.create_connection(('127.0.0.1', int(open('port').read())))\n"
        "peer.close()\n"
        "time.sleep(0.7)\n"  # the peer's failure is noticed well before this one's
        "raise ValueError('the real cause')\n"
    )
    launch = launcher.run("--here_gpus", "2", script)
    assert "launch: rank 1 on" in launch.err
    assert "  ValueError: the real cause" in launch.err
    assert "launch: rank 0 on" not in launch.err


def test_a_users_mistake_is_printed_once_and_nothing_else(launcher: Launcher) -> None:
    script = launcher.script(
        "import json, os, sys\n"
        "words = 'leanings.csv: no such file. Name a CSV file.'\n"
        "message = {'message': {'message': words, 'extraInfo': {'py_callstack': ''}, 'kind': 'usage', 'exit_code': 2}}\n"
        "json.dump(message, open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w'))\n"
        "if os.environ['RANK'] == '0':\n    print('bert_train_parallel:', words, file=sys.stderr)\n"
        "sys.exit(2)\n"
    )
    launch = launcher.run("-q", "--here_gpus", "2", script)
    assert launch.process.returncode == 2
    assert launch.err.count("no such file") == 1
    assert len(launch.err.splitlines()) == 1


def test_quiet_silences_the_launcher_but_neither_the_script_nor_a_failure(launcher: Launcher) -> None:
    script = launcher.script("import sys; print('out'); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))")
    quiet = launcher.run("-q", script, "0")
    assert (quiet.out, quiet.err) == ("out\n", "err\n")
    assert "failed with exit code 3" in launcher.run("-q", script, "3").err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_ranks_which_have_time_to_save(launcher: Launcher, number: signal.Signals, code: int) -> None:
    script = launcher.script(
        "import os, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.2); print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    launch = launcher.start("--here_gpus", "2", script)
    launch.wait_for("ready", 2)
    launch.process.send_signal(number)
    assert launch.wait(5.0) == code
    assert launch.out.count("saved") == 2
    assert "launch: stopped by" in launch.err


def test_a_shell_script_passes_the_end_on_to_what_it_runs(launcher: Launcher) -> None:
    launcher.script(
        "import signal, sys, time\n"
        "def save(*_):\n    print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n",
        "inner.py",
    )
    launcher.script(f"#!/bin/sh\n{sys.executable} inner.py\necho after\n", "outer.sh")
    (launcher.folder / "outer.sh").chmod(0o755)
    launch = launcher.start("outer.sh")
    launch.wait_for("ready")
    launch.process.terminate()
    assert launch.wait(5.0) == 143
    assert launch.out.count("saved") == 1


def test_ranks_that_ignore_the_signals_are_killed_after_the_grace(launcher: Launcher) -> None:
    launch = launcher.start("--here_gpus", "2", "--grace", "0.5", launcher.script(STUBBORN))
    launch.wait_for("ready", 2)
    launch.process.terminate()
    assert launch.wait(5.0) == 143


def test_a_second_ctrl_c_waits_no_longer(launcher: Launcher) -> None:
    launch = launcher.start("--grace", "600", launcher.script(STUBBORN))
    launch.wait_for("ready")
    launch.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    launch.process.send_signal(signal.SIGINT)
    assert launch.wait(5.0) == 130


def test_whichever_process_is_killed_nothing_is_left(launcher: Launcher) -> None:
    script = launcher.script(FAMILY)
    for number in range(20):
        launch = launcher.start("--here_gpus", "2", script)
        launch.wait_for("ready", 2)
        pids = sorted(launch.pids())
        if number >= len(pids):
            break
        os.kill(pids[number], signal.SIGKILL)
        is_rank_or_launcher = until(lambda launch=launch: launch.process.poll() is not None, 0.5)  # type: ignore[misc]
        if not is_rank_or_launcher:  # a rank's child: the launch goes on, as its rank does
            assert len(launch.pids()) >= 4
            launch.process.send_signal(signal.SIGKILL)
        assert until(lambda launch=launch: not launch.pids(), 5.0), f"left after killing process {number} of {len(pids)}"  # type: ignore[misc]
    else:
        raise AssertionError("more processes than a launch of two can have")
    launch.process.kill()
    assert until(lambda: not launch.pids(), 5.0)
    assert len(pids) == 10  # the two that watch, two ranks, and three below each of them


def test_the_end_of_the_process_that_watches_is_told(launcher: Launcher) -> None:
    launch = launcher.start(launcher.script(SLEEPER))
    launch.wait_for("pid ")
    rank = int(launch.out.split()[-1])
    watching = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    assert watching != launch.process.pid
    os.kill(watching, signal.SIGKILL)
    assert launch.wait(5.0) == 137
    assert "the process that watched over the ranks was killed by SIGKILL" in launch.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_costs_the_log_and_not_the_run(launcher: Launcher, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        launch = launcher.run("--log_dir", "disk/logs", launcher.script("for line in range(20000): print(line)"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert launch.process.returncode == 0
    assert launch.out.split() == [str(line) for line in range(20000)]
    assert launch.err.count("its logs are incomplete") == 1


def test_killing_the_whole_process_group_of_the_launcher_leaves_nothing(launcher: Launcher) -> None:
    launch = launcher.start("--here_gpus", "2", launcher.script(FAMILY))
    launch.wait_for("ready", 2)
    group = os.getpgid(launch.process.pid)
    assert group == os.getpgid(0)  # so the members are killed one by one here: the group is pytest's own
    for pid in launch.pids():
        if os.getpgid(pid) == group:
            os.kill(pid, signal.SIGKILL)
    assert until(lambda: not launch.pids(), 5.0)


def test_what_a_script_leaves_behind_ends_with_the_launch(launcher: Launcher) -> None:
    script = launcher.script(
        "import subprocess, sys\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\nprint('done', flush=True)\n"
    )
    launch = launcher.run("--here_gpus", "2", script)
    assert launch.process.returncode == 0
    assert launch.pids() == []


def test_a_failed_world_starts_again_as_often_as_was_asked(launcher: Launcher) -> None:
    script = launcher.script(
        "import os, sys\nattempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\nprint('attempt', attempt)\n"
        "sys.exit(5 if attempt < int(sys.argv[1]) else 0)\n"
    )
    assert launcher.run("--max_restarts", "2", script, "2").process.returncode == 0
    again = launcher.run("--max_restarts", "1", script, "2")
    assert again.process.returncode == 5
    assert again.out.split() == ["attempt", "0", "attempt", "1"]


def test_ctrl_c_while_a_failed_world_ends_stops_it_from_starting_again(launcher: Launcher) -> None:
    script = launcher.script(
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '1':\n    time.sleep(0.3); sys.exit(5)\n"
        "def save(*_):\n    print('saving', flush=True); time.sleep(1); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "time.sleep(600)\n"
    )
    launch = launcher.start("--here_gpus", "2", "--max_restarts", "9", script)
    launch.wait_for("saving")
    launch.process.send_signal(signal.SIGINT)
    assert launch.wait(8.0) == 5
    assert launch.out.count("saving") == 1
