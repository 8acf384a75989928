"""What tests of launches on several hosts share: starting one on each, and looking at how all of them end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from .fleet import Host, Run

SOON_S = 30.0  # far above the seconds that the project promises: a busy machine must not fail a test
SAY_WHO = """
import os
place = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")]
print("rank {} of {}, local {}, attempt {}".format(*place), "on", os.uname().nodename, flush=True)
"""
WAIT = SAY_WHO + "import time\ntime.sleep(60)\n"


def start_all(
    hosts: list[Host], counts: list[int], script: str, *flags: str, flags_of: Mapping[str, tuple[str, ...]] | None = None
) -> list[Run]:
    """`launch.py` with here and other counts on as many hosts as there are counts; alpha is the master."""
    runs = []
    for number, (host, count) in enumerate(zip(hosts, counts, strict=False)):
        place = ["--node_rank", str(number), "--master_addr", "alpha"] if number else []
        own = (flags_of or {}).get(host.name, ())
        words = ["--here_gpus", str(count), "--other_gpus", str(sum(counts) - count), *place, *flags, *own]
        runs.append(host.launch(*words, host.script(script)))
    return runs


def start_with_map(hosts: list[Host], gpu_map: Mapping[str, int], script: str, *flags: str) -> list[Run]:
    """The same line with the same map on every host."""
    runs = []
    for host in hosts:
        (host.folder / "gpus.json").write_text(json.dumps(gpu_map))
        runs.append(host.launch("--gpu_map", "gpus.json", *flags, host.script(script)))
    return runs


def all_end(runs: list[Run], code: int) -> None:
    found = [run.wait(SOON_S) for run in runs]
    assert found == [code] * len(runs), f"exit codes {found}\n{everything(runs)}"


def all_say(runs: list[Run], *words: str) -> None:
    for run in runs:
        missing = [word for word in words if word not in run.text]
        assert not missing, f"{run.host.name} does not say {missing}:\n{everything(runs)}"
        assert "Traceback" not in run.text or any("Traceback" in word for word in words), everything(runs)


def all_run(runs: list[Run], attempt: int = 0) -> None:
    """Wait until every rank of an attempt has said who it is."""
    for run in runs:
        run.wait_for(f"attempt {attempt} on {run.host.name}", SOON_S)


def everything(runs: list[Run]) -> str:
    return "\n".join(f"--- {run.host.name}\n{run.text}" for run in runs)


def seconds_since(moment: float) -> float:
    return time.monotonic() - moment
