"""Launches from a Python program."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bert_train_parallel import launching
from bert_train_parallel.errors import BadSetting
from bert_train_parallel.launching import LaunchEvent, LaunchRequest, launch

from .conftest import MARK, ROOT, Launcher, living, until


def test_a_launch_gives_its_plan_and_its_events(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os; open('rank' + os.environ['RANK'], 'w').write(os.environ['COLOR'])")
    events: list[LaunchEvent] = []
    request = LaunchRequest((sys.executable, "a.py"), folder=str(tmp_path), here=2, device="cpu", environment={"COLOR": "red"})
    result = launch(request, events.append)
    assert (result.exit_code, result.first_failure, result.plan.world_size) == (0, None, 2)
    assert [event.kind for event in events] == ["planned", "started"]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["red", "red"]


def test_a_rank_that_fails_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("raise ValueError('the data ran out')")
    request = LaunchRequest((sys.executable, "a.py"), folder=str(tmp_path), here=2, device="cpu", log_dir="logs")
    result = launch(request, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert result.exit_code == 1
    assert result.first_failure is not None
    assert "the data ran out" in result.first_failure.words


def test_a_request_that_cannot_be_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot be started"):
        launch(LaunchRequest(("./none",), folder=str(tmp_path), device="cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_launcher_that_cannot_be_started_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_train_parallel.launching.library.launcher_command", lambda events: [str(tmp_path / "none")])
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        launch(LaunchRequest((sys.executable, "a.py"), folder=str(tmp_path)))
    assert os.listdir("/proc/self/fd") == before


def test_a_launch_works_in_a_thread_of_a_program_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('ran')")
    codes: list[int] = []
    request = LaunchRequest((sys.executable, "a.py"), folder=str(tmp_path), device="cpu")
    threads = [threading.Thread(target=lambda: codes.append(launch(request, stdout=subprocess.DEVNULL).exit_code)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert codes == [0, 0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_launch_ends_with_the_program_that_asked_for_it(launcher: Launcher) -> None:
    launcher.script("import time; print('ready', flush=True); time.sleep(600)", "sleeper.py")
    program = (
        "import sys\nfrom bert_train_parallel.launching import LaunchRequest, launch\n"
        "launch(LaunchRequest((sys.executable, 'sleeper.py'), here=2, device='cpu'))\n"
    )
    mark = secrets.token_hex(8)
    caller = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=launcher.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(launcher.folder), MARK: mark},
        stdout=subprocess.PIPE,
    )
    assert caller.stdout is not None
    assert [caller.stdout.readline().split()[-1] for _ in range(2)] == [b"ready", b"ready"]
    caller.kill()
    caller.wait()
    caller.stdout.close()

    assert until(lambda: not living(mark), 5.0)


def test_the_room_has_the_names_that_it_announces() -> None:
    for name in launching.__all__:
        assert getattr(launching, name).__name__ == name
    with pytest.raises(AttributeError):
        launching.nothing  # noqa: B018
