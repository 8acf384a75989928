"""Process trees and their end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from bert_train_parallel import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of process trees is best effort")


def in_a_process(body: Callable[[], int]) -> int:
    """Run `body` in a fork of its own, since it changes what a process is for good; its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = body()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return 3", 3, "begun"),
        ("raise SystemExit(2)", 2, "begun"),
        ("raise SystemExit('no')", 1, "begun"),
        ("raise KeyError('gone')", 1, "KeyError: 'gone'"),
    ],
)
def test_a_rank_ends_with_its_code_whatever_would_happen_while_python_finalises(body: str, code: int, said: str) -> None:
    script = (
        "import atexit, os\nfrom bert_train_parallel.processes import end_with\natexit.register(os.abort)\n"
        f"def body():\n    print('begun')\n    {body}\nend_with(body)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_descendants_are_found_through_orphans_and_sessions() -> None:
    def body() -> int:
        processes.adopt_orphans()
        code = (
            "import os, time\n"
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\n"
            "os.wait()\nprint(flush=True)\ntime.sleep(60)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.reap_orphans([child.pid])
        found = processes.descendants(os.getpid())
        assert child.pid in found
        assert child.pid not in processes.descendants(os.getpid(), without=[child.pid])
        assert processes.kill_descendants() == []
        assert processes.descendants(os.getpid()) == []
        return len(found)

    assert in_a_process(body) == 2


def test_a_tree_that_goes_on_forking_is_killed_whole() -> None:
    def body() -> int:
        processes.adopt_orphans()
        # each process starts another one in a session of its own and ends, without end
        code = (
            "import os, time\nwhile True:\n"
            "    if os.fork() == 0:\n        os.setsid()\n        time.sleep(0.002)\n    else:\n        os._exit(0)"
        )
        for _ in range(3):
            subprocess.Popen([sys.executable, "-c", code]).wait()
        assert processes.kill_descendants(10.0) == []
        with pytest.raises(ChildProcessError):  # a scan of /proc may miss them, the kernel does not
            os.waitpid(-1, os.WNOHANG)
        return 0

    assert in_a_process(body) == 0


def test_a_started_program_dies_with_the_process_that_started_it() -> None:
    reading, writing = os.pipe()

    def body() -> int:
        processes.start(["sleep", "600"], folder="/", environment={}, stdin=0, stdout=writing, stderr=writing)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_a_process(body) == -signal.SIGKILL
    os.close(writing)
    assert select.select([reading], [], [], 10.0)[0], "the program still holds the pipe"
    os.close(reading)


@pytest.mark.parametrize("code", [0, 7])
def test_guarded_passes_the_exit_code_on(code: int) -> None:
    assert in_a_process(lambda: processes.guarded(lambda interrupts: code)) == code


def test_guarded_says_which_signal_killed_its_process() -> None:
    def killed(interrupts: processes.Interrupts) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_a_process(lambda: -processes.guarded(killed)) == signal.SIGKILL


def test_a_mistake_in_a_guarded_body_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def wrong(interrupts: processes.Interrupts) -> int:
        raise RuntimeError("a mistake of ours")

    assert in_a_process(lambda: processes.guarded(wrong)) == 1
    assert "RuntimeError: a mistake of ours" in capfd.readouterr().err


def test_signals_and_the_end_of_a_lifeline_are_read_as_numbers() -> None:
    def body() -> int:
        reading, writing = os.pipe()
        interrupts = processes.Interrupts({reading: signal.SIGTERM})
        assert interrupts.read() == []
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select(interrupts.filenos(), [], [], 10.0)[0]
        assert interrupts.read() == [signal.SIGINT]
        os.close(writing)
        assert select.select(interrupts.filenos(), [], [], 10.0)[0]
        assert interrupts.read() == [signal.SIGTERM]
        assert interrupts.read() == []
        interrupts.close()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return 0

    assert in_a_process(body) == 0


def test_a_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    def body() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        interrupts = processes.Interrupts()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
        return len(interrupts.read())

    assert in_a_process(body) == 0
