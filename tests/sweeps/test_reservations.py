"""GPUs that this node holds for trials and for what is done beside them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import fake_nvml
import pytest

from bert_train_parallel import gpus
from bert_train_parallel.errors import BadGpuMap
from bert_train_parallel.sweeps import reservations

IDLE = {"uuid": "GPU-aa", "bus": "1", "used": 0, "busy": 0}


def test_a_driver_that_takes_long_to_answer_keeps_no_heartbeat_back_and_a_trial_that_is_ended_meanwhile_keeps_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml.use(tmp_path, monkeypatch, [IDLE])
    monkeypatch.setattr(reservations, "LOOK_S", 0.001)
    answers, look = threading.Event(), gpus.look

    def slow_look() -> tuple[list[gpus.Gpu], list[str]]:
        assert answers.wait(30)
        return look()

    monkeypatch.setattr(gpus, "look", slow_look)

    async def ended_after_three_ticks() -> None:
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 3:
                raise TimeoutError("ended")

        with pytest.raises(TimeoutError):
            await reservations.wait_for_gpus(1, "auto", tick)
        answers.set()
        hold = await reservations.wait_for_gpus(1, "auto", lambda: None)  # it asks after the other look is over
        assert hold.claim.devices == ("GPU-aa",)
        hold.release()

    asyncio.run(ended_after_three_ticks())


def test_gpus_of_which_there_are_fewer_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.use(tmp_path, monkeypatch, [IDLE])
    with pytest.raises(BadGpuMap, match=r"launch\.here_gpus 2, and this machine has 1 GPU"):
        asyncio.run(reservations.wait_for_gpus(2, "auto", lambda: None))


def test_what_need_not_wait_leaves_a_gpu_to_the_programs_that_largely_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.use(tmp_path, monkeypatch, [IDLE | {"used": 70 * fake_nvml.GIB}])
    assert asyncio.run(reservations.gpu_at_once(lambda: None)).claim == gpus.Claim(1)


def test_a_macs_own_gpu_needs_no_variables_of_nvidias() -> None:
    assert reservations.launch_environment(gpus.Claim(1, ("mps",)), cores=4) == {"OMP_NUM_THREADS": "4"}
