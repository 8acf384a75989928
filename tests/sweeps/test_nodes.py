"""Two nodes as network namespaces with a worker each: a trial takes the whole fleet, alone, and goes on when a node is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts.fleet import Host, Run, fleet, until, why_not

from bert_train_parallel.sweeps import lease

from .test_chaos import check_steps

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts")]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Host]]:
    with fleet(("alpha", "beta")) as hosts:
        for host in hosts:
            host.folder = tmp_path / host.name
            host.folder.mkdir()
        yield hosts
        for host in hosts:
            host.kill()
            for run in host.runs:
                run.process.wait()


def sweep(host: Host, *words: str) -> Run:
    return host.start(sys.executable, "-P", "-m", "bert_train_parallel.sweeps", *words)


def worker(host: Host, address: str, shared: Path, *more: str) -> Run:
    place = ("--address", address, "--namespace", "default", "--output_dir", str(shared))
    return sweep(host, "worker", *place, "--queue", "node", "--host", host.name, *more)


def test_a_trial_over_two_nodes_goes_on_when_one_is_lost(
    nodes: list[Host], tiny_model: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    alpha, beta = nodes
    shared, source = tmp_path / "shared", write_csv(120)
    tuned = {"model_name": str(tiny_model), "dataset_name": str(source), "num_epochs": 4, "batch_size": 8, "use_gpu": False}
    settings = {"checkpoint_every": 4, "log_every": 1, "export": False}
    request = {
        "experiment_id": "fleet",
        "base": {"fine_tune_config": tuned | {"settings": settings}},
        "space": {"learning_rate": [1e-4, 1e-2]},
        "num_trials": 2,
        "max_concurrency": 2,
        "launch": {"gpu_map": {"alpha": 1, "beta": 1}, "grace_s": 2},
    }
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(request))

    server = sweep(alpha, "server", "--ip", alpha.address, "--output_dir", str(shared))
    server.wait_for("answers at", 60)
    found = re.search(r"answers at (\S+);", server.text)
    assert found
    address = found[1]
    workers = [worker(alpha, address, shared, "--queue", "eval"), worker(beta, address, shared)]
    place = ("--address", address, "--namespace", "default", "--output_dir", str(shared))
    starting = sweep(alpha, "start", str(path), *place)
    assert starting.wait(90) == 0, starting.text
    watching = sweep(alpha, "watch", "fleet", *place)

    def checkpoints() -> list[Path]:
        return [found for found in shared.glob("bert_runs/*/*_checkpoints/step_*") if found.is_dir()]

    def everything() -> str:
        return "\n".join(run.text for run in (*workers, watching))

    until(lambda: bool(checkpoints()), 120, everything)
    beta.kill()
    worker(beta, address, shared)
    assert watching.wait(200) == 0, everything()

    runs = sorted((shared / "bert_runs").glob("fleet-t*"))
    assert len(runs) == 2
    for run in runs:
        result = json.loads(next(run.glob("*_RESULT.json")).read_text())
        assert result["world"]["nodes"] == {"alpha": 1, "beta": 1}
        check_steps(run, int(result["steps"]))
    tries = [[one for one in lease.attempts(run) if one.began] for run in runs]
    assert max(len(found) for found in tries) >= 2
    assert all(one.gpus == 2 for found in tries for one in found)
    spans = sorted((one.began, one.began + one.seconds) for found in tries for one in found)
    assert all(end <= begin + 1.5 for (_, end), (begin, _) in itertools.pairwise(spans))  # the fleet is one trial's at a time
    with contextlib.suppress(StopIteration):
        log = next(shared.glob("bert_runs/*/node_1/attempts/*.json"))
        assert json.loads(log.read_text())["gpus"] == 0  # counted once, by the first node
