"""One fate: whatever dies on whichever host, every node ends soon, says the same first cause, and leaves no process behind.

The fixture looks for survivors on every host after each test.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from .fleet import Host, Run, until
from .launches import SAY_WHO, SOON_S, WAIT, all_end, all_run, all_say, everything, start_all, start_with_map

FAILS_ON_BETA = (
    SAY_WHO
    + """
import os, time
if os.uname().nodename == "beta" and os.environ["LOCAL_RANK"] == "1":
    raise KeyError("no such label")
time.sleep(60)
"""
)
# the first attempt waits to be disturbed, the next one ends well
WAITS_ONCE = SAY_WHO + "import os, time\ntime.sleep(0 if os.environ['TORCHELASTIC_RESTART_COUNT'] > '0' else 60)\n"


def ranks_on(host: Host) -> list[int]:
    """Process ids of the ranks there."""
    found = []
    for pid in host.pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as command:
                if b"LOCAL_RANK=" in environ.read() and b"script.py" in command.read():
                    found.append(pid)
        except OSError:
            continue
    return found


def gone(host: Host, run: Run) -> None:
    until(lambda: run.process.poll() is not None and not host.pids(), SOON_S, lambda: f"an end on {host.name}: {run.text}")


def test_a_rank_that_fails_is_told_with_its_traceback_on_every_node(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 2, 1], FAILS_ON_BETA)
    all_end(runs, 1)
    all_say(runs, "rank 2 on beta", "KeyError: 'no such label'", "Traceback")


def test_a_rank_that_is_killed_is_named_on_every_node(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 2], WAIT)
    all_run(runs)
    os.kill(ranks_on(hosts[1])[0], signal.SIGKILL)
    all_end(runs, 137)
    all_say(runs, "on beta", "SIGKILL")


def test_a_node_that_is_killed_is_named_on_the_others(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 1, 1], WAIT)
    all_run(runs)
    hosts[1].kill()
    all_end([runs[0], runs[2]], 1)
    all_say([runs[0], runs[2]], "lost beta (node 1): its connection ended")


def test_a_cut_cable_ends_both_sides(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 1, 1], WAIT)
    all_run(runs)
    hosts[1].cut()
    all_end(runs, 1)
    all_say([runs[0], runs[2]], "lost beta (node 1): no word from it for 3 s")
    all_say([runs[1]], "lost alpha, the master: no word from it for 3 s", "Start the same line again on every node")


def test_a_killed_master_ends_all_nodes_with_a_sentence(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 1, 1], WAIT)
    all_run(runs)
    hosts[0].kill()
    all_end(runs[1:], 1)
    all_say(runs[1:], "lost alpha, the master: its connection ended", "a script goes on from its own checkpoints")


def test_ranks_that_do_not_heed_sigterm_are_gone_on_every_node_soon_after_a_failure(hosts: list[Host]) -> None:
    deaf = SAY_WHO + "import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"
    script = deaf + "time.sleep(1)\nif os.environ['RANK'] == '1':\n    raise SystemExit(3)\nwhile True:\n    time.sleep(60)\n"
    runs = start_all(hosts, [1, 1, 1], script, "--grace", "60")
    all_end(runs, 3)


def test_the_launcher_alone_killed_takes_its_ranks_with_it_and_ends_the_others(hosts: list[Host]) -> None:
    runs = start_all(hosts, [1, 1], WAIT)
    all_run(runs)
    runs[1].process.kill()
    gone(hosts[1], runs[1])
    all_end(runs[:1], 1)
    all_say(runs[:1], "lost beta (node 1)")


@pytest.mark.parametrize("stopped", [0, 1])
def test_ctrl_c_on_one_node_ends_all(hosts: list[Host], stopped: int) -> None:
    runs = start_all(hosts, [1, 1], WAIT)
    all_run(runs)
    runs[stopped].process.send_signal(signal.SIGINT)
    assert runs[stopped].wait(SOON_S) == 130, everything(runs)
    assert runs[1 - stopped].wait(SOON_S) == 130, everything(runs)
    all_say([runs[1 - stopped]], f"stopped by Ctrl-C on {hosts[stopped].name}")


def test_a_node_that_is_done_waits_for_the_others_and_shares_their_fate(hosts: list[Host]) -> None:
    runs = start_all(
        hosts, [1, 1], SAY_WHO + "import os, time\ntime.sleep(2 * int(os.environ['RANK']))\nraise SystemExit(7 * int(os.environ['RANK']))"
    )
    all_end(runs, 7)
    all_say(runs, "rank 1 on beta", "exit code 7")


# again


@pytest.mark.parametrize("what", ["rank", "node", "cable"])
def test_elastic_or_restart_brings_the_world_back(hosts: list[Host], what: str) -> None:
    flags = ["--max_restarts", "1"] if what == "rank" else ["--elastic"]
    runs = start_all(hosts, [1, 2, 1], WAITS_ONCE, *flags)
    all_run(runs)
    if what == "rank":
        os.kill(ranks_on(hosts[1])[0], signal.SIGKILL)
    elif what == "node":
        hosts[1].kill()
    else:
        hosts[1].cut()
        assert runs[1].wait(SOON_S) == 1, everything(runs)
    left = runs if what == "rank" else [runs[0], runs[2]]
    all_end(left, 0)
    if what == "rank":
        all_say(runs, "was killed by SIGKILL", "restart 1 of 1 (--max_restarts): starting again on every node")
        assert "rank 3 of 4, local 0, attempt 1" in runs[2].text
    else:
        all_say(left, "starting again without beta (--elastic)")
        assert "rank 1 of 2, local 0, attempt 1" in runs[2].text


@pytest.mark.parametrize("killed", ["all", "launcher"])
def test_a_lost_node_that_is_started_again_joins_the_restart(hosts: list[Host], killed: str) -> None:
    flags = ("--max_restarts", "1")
    runs = start_all(hosts, [1, 1, 1], WAITS_ONCE, *flags)
    all_run(runs)
    if killed == "all":
        hosts[1].kill()
    else:
        runs[1].process.kill()
        gone(hosts[1], runs[1])
    runs[0].wait_for("waiting up to 120 s for beta to come back", SOON_S)
    back = hosts[1].launch("--other_gpus", "2", "--node_rank", "1", "--master_addr", "alpha", *flags, "script.py")
    all_end([runs[0], back, runs[2]], 0)
    assert "rank 1 of 3, local 0, attempt 1 on beta" in back.text


def test_the_same_line_starts_anew_after_the_master_was_killed(hosts: list[Host]) -> None:
    gpu_map = {"alpha": 1, "beta": 1}
    runs = start_with_map(hosts[:2], gpu_map, WAIT)
    all_run(runs)
    hosts[0].kill()
    all_end(runs[1:], 1)
    all_end(start_with_map(hosts[:2], gpu_map, SAY_WHO), 0)


def test_restarts_are_counted_and_then_the_failure_stands(hosts: list[Host]) -> None:
    began = time.monotonic()
    runs = start_all(hosts, [1, 1], SAY_WHO + "raise SystemExit(9)", "--max_restarts", "2")
    all_end(runs, 9)
    all_say(runs, "restart 1 of 2", "restart 2 of 2", "attempt 2")
    assert time.monotonic() - began < 60
