"""GPUs of this node held for trials, by the locks that launches use; two sweeps, or a sweep and a launch, never share one."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable

from bert_train_parallel import gpus
from bert_train_parallel.errors import BadGpuMap, BadSetting

LOOK_S = 1.0
UNUSED_S = 120.0  # a reservation that no launch has begun to use by then is given up


def count_here() -> int:
    """GPUs that trials may use here; 0 where there are none."""
    return len(gpus.visible(gpus.list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")))


async def wait_for_gpus(count: int, device: str, tick: Callable[[], None]) -> gpus.Claim:
    """Hold that many GPUs, waiting while others have them; without GPUs, CPU processes.

    Raises:
        BadGpuMap: this node has fewer.
    """
    while True:
        try:
            return gpus.claim(count, device, asked_by="launch.here_gpus")
        except BadGpuMap:
            if count > count_here():
                raise
        tick()
        await asyncio.sleep(LOOK_S)


def launch_environment(claim: gpus.Claim) -> dict[str, str]:
    """What tells a launcher to use these GPUs, whose locks it inherits."""
    if not claim.devices:
        return {}
    held = ",".join(f"{uuid}={lock}" for uuid, lock in zip(claim.devices, claim.locks, strict=False))
    return {"CUDA_VISIBLE_DEVICES": ",".join(claim.devices), gpus.HELD_VARIABLE: held}


class Reservations:
    """GPUs held on this node for launches over several nodes, until the launch takes them over or they are given back."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[gpus.Claim, float]] = {}
        self._free = asyncio.Condition()
        self._alone = asyncio.Lock()  # without GPUs nothing else keeps two fleets apart

    async def hold(self, count: int, device: str, tick: Callable[[], None]) -> str:
        """Wait for the GPUs and hold them; gives the name of the reservation."""
        await _acquired(self._alone, tick)
        try:
            claim = await wait_for_gpus(count, device, tick)
        except BaseException:
            self._alone.release()
            raise
        name = secrets.token_hex(8)
        self._held[name] = (claim, time.monotonic())
        asyncio.get_running_loop().call_later(UNUSED_S, self.give_back, name)
        return name

    def take(self, name: str) -> gpus.Claim:
        """Take over what was reserved; from now on it is the taker's to release.

        Raises:
            BadSetting: nothing is held under this name any more.
        """
        found = self._held.pop(name, None)
        if found is None:
            raise BadSetting(f"the reservation {name} has been given up; it is to be made again.")
        self._alone.release()
        return found[0]

    def give_back(self, name: str) -> None:
        found = self._held.pop(name, None)
        if found is not None:
            found[0].release()
            self._alone.release()


async def _acquired(lock: asyncio.Lock, tick: Callable[[], None]) -> None:
    while lock.locked():
        tick()
        await asyncio.sleep(LOOK_S)
    await lock.acquire()
