"""GPUs of this node held for trials, by the locks that launches use; two sweeps, or a sweep and a launch, never share one."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bert_train_parallel import gpus
from bert_train_parallel.errors import BadGpuMap, BadSetting, Unreachable
from bert_train_parallel.sweeps.messages import counted

LOOK_S = 1.0
_LOOKING = ThreadPoolExecutor(max_workers=1)  # one look at a time: two that each want two GPUs would each keep one from the other
UNUSED_S = 120.0  # a reservation that no launch has begun to use by then is given up


def count_here() -> int:
    """GPUs that trials may use here; 0 where there are none."""
    return len(_gpus_here())


def _gpus_here() -> list[gpus.Gpu]:
    return gpus.visible(gpus.list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


class TooFewGpus(BadGpuMap):
    """This node has fewer GPUs than a trial needs; another node may have them."""


def check_can_run(count: int, device: str) -> None:
    """
    Raises:
        TooFewGpus: this node has fewer GPUs; none at all will do, where the trial may train on the CPU.
    """
    here = count_here() if device in ("auto", "cuda") else count
    if here < count and (here or device == "cuda"):
        raise TooFewGpus(
            f"launch.here_gpus {count}, and this machine has {counted(here, 'GPU')} to use. Write {here or 'use_gpu false'}"
            f"{' or less' * bool(here)}, or run the sweep on machines that have more: bert_sweep worker and bert_sweep start."
        )


@dataclass(slots=True)
class Hold:
    """GPUs held for one trial, or none but CPU ranks, and what else ends with that."""

    claim: gpus.Claim
    on_release: Callable[[], None] = lambda: None

    def release(self) -> None:
        """Give all back, once."""
        self.claim.release()
        on_release, self.on_release = self.on_release, lambda: None
        on_release()


async def wait_for_gpus(count: int, device: str, tick: Callable[[], None]) -> Hold:
    """Hold that many GPUs, waiting while others have them; without GPUs, CPU processes.

    Raises:
        BadGpuMap: this node has fewer.
    """
    while True:
        claim = await _looked(lambda: _claim_unless_held(count, device), tick)
        if claim is not None:
            return Hold(claim)
        tick()
        await asyncio.sleep(LOOK_S)


async def gpu_at_once(tick: Callable[[], None]) -> Hold:
    """Hold a GPU that no launch holds and no other program largely uses at this moment; the CPU where there is none."""
    claim = await _looked(_claim_idle, tick)
    return Hold(claim or gpus.Claim(1))


def _claim_idle() -> gpus.Claim | None:
    idle = [gpu.uuid for gpu in _gpus_here() if not gpu.is_largely_used]
    try:
        return gpus.claim(1, devices=idle) if idle else None
    except BadSetting:  # launches hold all of these, or one has just failed
        return None


def _claim_unless_held(count: int, device: str) -> gpus.Claim | None:
    """The GPUs, or CPU processes where there are none; None while launches hold too many.

    Raises:
        BadGpuMap: this node has fewer.
    """
    try:
        return gpus.claim(count, device, asked_by="launch.here_gpus")
    except BadGpuMap:
        if count > count_here():
            raise
        return None


async def _looked(look: Callable[[], gpus.Claim | None], tick: Callable[[], None]) -> gpus.Claim | None:
    """What a look at the GPUs gives; in a thread, since the driver may take seconds to answer, and heartbeats go on meanwhile."""
    asked = _LOOKING.submit(look)
    try:
        waited = asyncio.wrap_future(asked)
        while not (await asyncio.wait({waited}, timeout=LOOK_S))[0]:
            tick()
        return waited.result()
    except BaseException:  # nobody is left to take what it finds
        asked.cancel()
        asked.add_done_callback(_give_up)
        raise


def _give_up(asked: Future[gpus.Claim | None]) -> None:
    claim = None if asked.cancelled() or asked.exception() else asked.result()
    if claim is not None:
        claim.release()


def launch_environment(claim: gpus.Claim, cores: int | None = None) -> dict[str, str]:
    """What tells a launcher to use these GPUs, whose locks it inherits; or, without a GPU, this many CPU cores for all ranks.

    >>> launch_environment(gpus.Claim(ranks=2), cores=8), launch_environment(gpus.Claim(ranks=2), cores=1)
    ({'OMP_NUM_THREADS': '4'}, {'OMP_NUM_THREADS': '1'})
    """
    if not claim.locks:  # the CPU, or a Mac's own GPU
        return {"OMP_NUM_THREADS": str(max(cores // claim.ranks, 1))} if cores else {}
    held = ",".join(f"{uuid}={lock}" for uuid, lock in zip(claim.devices, claim.locks, strict=True))
    return {"CUDA_VISIBLE_DEVICES": ",".join(claim.devices), gpus.HELD_VARIABLE: held}


class Reservations:
    """What is held on this node for launches over several nodes, one at a time, until the launch takes it over or it is given back."""

    def __init__(self) -> None:
        self._held: dict[str, Hold] = {}
        self._one_at_a_time = asyncio.Lock()  # without GPUs nothing else keeps two fleets apart

    async def hold(self, count: int, device: str, tick: Callable[[], None]) -> str:
        """Wait for the GPUs and hold them; gives the name of the reservation."""
        while self._one_at_a_time.locked():
            tick()
            await asyncio.sleep(LOOK_S)
        await self._one_at_a_time.acquire()
        try:
            found = await wait_for_gpus(count, device, tick)
        except BaseException:
            self._one_at_a_time.release()
            raise
        found.on_release = self._one_at_a_time.release
        name = secrets.token_hex(8)
        self._held[name] = found
        asyncio.get_running_loop().call_later(UNUSED_S, self.give_back, name)
        return name

    def take(self, name: str) -> Hold:
        """Take over what was reserved; from now on it is the taker's to release.

        Raises:
            Unreachable: nothing is held under this name any more, as after a restart of the worker.
        """
        found = self._held.pop(name, None)
        if found is None:
            raise Unreachable("the GPUs that were held for the trial have been given up; they are to be held again.")
        return found

    def give_back(self, name: str) -> None:
        found = self._held.pop(name, None)
        if found is not None:
            found.release()
