"""Launches on a machine with (made-up) GPUs: the right ones reach the ranks."""

from __future__ import annotations

from pathlib import Path

import fake_nvml

from .conftest import Launcher

SHOW = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'], os.environ['LOCAL_RANK'], flush=True)\n"


def test_the_least_busy_gpus_inside_the_visible_ones_reach_the_ranks(launcher: Launcher, tmp_path: Path) -> None:
    environment = fake_nvml.install(tmp_path)
    script = launcher.script(SHOW)
    launch = launcher.run("--here_gpus", "2", script, **environment, CUDA_VISIBLE_DEVICES="0,2,MIG-d1")
    assert launch.process.returncode == 0, launch.err
    assert sorted(launch.out.splitlines()) == [f"[rank {rank}] GPU-cc,MIG-d1 PCI_BUS_ID {rank}" for rank in range(2)]


def test_one_process_runs_on_each_gpu_and_two_launches_at_once_share_none(launcher: Launcher, tmp_path: Path) -> None:
    environment = fake_nvml.install(tmp_path)
    script = launcher.script(SHOW + "time.sleep(600)")
    first = launcher.start("--here_gpus", "2", script, **environment)
    first.wait_for("PCI_BUS_ID", 2)
    second = launcher.start(script, **environment)
    second.wait_for("PCI_BUS_ID", 3)
    assert {line.split()[2] for line in first.out.splitlines()} == {"MIG-d1,MIG-d2"}
    assert {line.split()[2] for line in second.out.splitlines()} == {"GPU-aa,GPU-bb,GPU-cc"}
    third = launcher.run("-q", script, **environment)
    assert third.process.returncode == 2
    assert "other launches hold 5 of the 5 GPUs" in third.err
    for launch in (first, second):
        launch.process.kill()
        launch.wait()
    assert len(launcher.run("--dry_run", script, **environment).out.split("MIG-d")) > 2


def test_a_gpu_that_other_programs_use_is_taken_too_where_no_number_is_given_and_that_is_said_once(
    launcher: Launcher, tmp_path: Path
) -> None:
    idle = {"uuid": "GPU-aa", "bus": "1", "used": 0, "busy": 0}
    environment = fake_nvml.install(tmp_path, [idle, idle | {"uuid": "GPU-bb", "bus": "2", "used": 60 * fake_nvml.GIB, "busy": 97}])
    script = launcher.script("print()")
    figures = "GPU 1 (GPU-bb: 60 of 80 GiB used, 97 % busy)"
    said = f"launch: taken although other programs use it: {figures}. Type --here_gpus 1 to take the least busy.\n"
    for words, times in ([], 1), (["--dry_run"], 1), (["-q"], 0), (["--here_gpus", "1"], 0):
        launch = launcher.run(*words, script, **environment)
        assert (launch.process.returncode, launch.err.count(said)) == (0, times), launch.err


def test_device_cpu_hides_the_gpus(launcher: Launcher, tmp_path: Path) -> None:
    script = launcher.script("import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ['BERT_TRAIN_DEVICE'])")
    assert launcher.run("--device", "cpu", script, **fake_nvml.install(tmp_path)).out == "'' cpu\n"
