"""The GPUs of this machine: which there are, how busy each is, and locks so that two launches never take the same one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_train_parallel.errors import BadGpuMap, BadSetting, NotWritable

LOCKS_VARIABLE = "BERT_TRAIN_LOCKS"  # another folder for the locks, for containers that share GPUs but not /tmp
HELD_VARIABLE = "BERT_TRAIN_HELD_LOCKS"  # locks that whoever starts the launch holds for it: UUID=open file, separated by commas
_LOCKS = "/tmp/bert_train_parallel_gpus"  # one for all users of a node, whatever their TMPDIR


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG instance of one."""

    uuid: str
    parent: str  # UUID of the physical GPU; its own where it is one
    index: int  # of the physical GPU, in the order of PCI buses
    name: str = ""
    memory_used: int = 0  # bytes
    utilisation: int = 0  # percent; of the whole GPU for a MIG instance
    memory: int = 0  # bytes, used or not; 0 where the driver does not say
    programs: int = 0  # that compute on it, as far as the driver tells

    @property
    def is_largely_used(self) -> bool:
        """Whether a training here would lack memory or time, for the sake of other programs.

        >>> Gpu("GPU-0", "GPU-0", 0, memory_used=41, memory=80).is_largely_used, Gpu("GPU-1", "GPU-1", 1, utilisation=99).is_largely_used
        (True, False)
        """
        return 2 * self.memory_used > self.memory > 0 or (self.programs > 0 and self.utilisation > 50)


def list_gpus() -> list[Gpu]:
    """Every GPU and MIG instance that can be used, in the order of PCI buses; empty without driver or pynvml."""
    return look()[0]


def look() -> tuple[list[Gpu], list[str]]:
    """What `list_gpus` gives; and a sentence for each GPU that is there and cannot be used."""
    if _is_in_vain():
        return [], []
    try:
        import pynvml
    except ImportError:
        return [], []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return [], []
    try:
        return _look(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _look(nvml: Any) -> tuple[list[Gpu], list[str]]:
    by_bus: list[tuple[str, int, Any]] = []
    gpus: list[Gpu] = []
    unusable: list[str] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            by_bus.append((_text(nvml.nvmlDeviceGetPciInfo(handle).busId), number, handle))
        except nvml.NVMLError as error:  # one that has failed must not keep a launch from the others
            unusable.append(_why_left_out(number, error))
    for index, (_, number, handle) in enumerate(sorted(by_bus, key=lambda one: one[:2])):
        try:
            instances = _instances(nvml, handle)
            gpus += _devices_of(nvml, handle, index, [handle] if instances is None else instances)
        except nvml.NVMLError as error:
            unusable.append(_why_left_out(number, error))
            continue
        if instances == []:
            how = "Make one with nvidia-smi mig -cgi, or end the mode with nvidia-smi -mig 0."
            unusable.append(f"GPU {number} is left out: it is in MIG mode and has no instance. {how}")
    return gpus, unusable


def _why_left_out(number: int, error: Exception) -> str:
    return f"GPU {number} is left out: the NVIDIA driver says {str(error)!r} of it. Look at it with nvidia-smi."


def _is_in_vain() -> bool:
    """Whether pynvml is NVIDIA's own and would only find that there is no driver: its import takes longer than all of a launch."""
    import ctypes
    from importlib.machinery import PathFinder

    if sys.platform != "linux":
        return False
    found = PathFinder.find_spec("pynvml")
    if found is None or found.origin is None:
        return found is None
    if not any(name.startswith("nvidia_ml_py-") for name in os.listdir(os.path.dirname(found.origin))):
        return False
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return True
    return False


def _devices_of(nvml: Any, handle: Any, index: int, devices: Sequence[Any]) -> list[Gpu]:
    """A GPU as itself, or as its MIG instances. What some models or modes do not tell is left at 0."""
    parent = _text(nvml.nvmlDeviceGetUUID(handle))
    utilisation = 0
    with contextlib.suppress(nvml.NVMLError):
        utilisation = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    found = []
    for device in devices:
        used, memory, name, programs = 0, 0, "", 0
        with contextlib.suppress(nvml.NVMLError):
            name = _text(nvml.nvmlDeviceGetName(device))
        with contextlib.suppress(nvml.NVMLError):
            told = nvml.nvmlDeviceGetMemoryInfo(device)
            used, memory = int(told.used), int(told.total)
        with contextlib.suppress(nvml.NVMLError):
            programs = len(nvml.nvmlDeviceGetComputeRunningProcesses(device))
        found.append(Gpu(_text(nvml.nvmlDeviceGetUUID(device)), parent, index, name, used, utilisation, memory, programs))
    return found


def _instances(nvml: Any, handle: Any) -> list[Any] | None:
    """The MIG instances of a GPU; None where it is not in MIG mode or cannot be."""
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return None
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return None
    found = []
    for number in range(most):
        with contextlib.suppress(nvml.NVMLError):  # this place holds no instance
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible(gpus: Sequence[Gpu], chosen: str | None, variable: str = "CUDA_VISIBLE_DEVICES") -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, by index, UUID or the beginning of a UUID; MIG instances by theirs or their GPU's.

    >>> gpus = [Gpu("GPU-aa", "GPU-aa", 0), Gpu("MIG-b1", "GPU-bb", 1), Gpu("MIG-b2", "GPU-bb", 1)]
    >>> [gpu.uuid for gpu in visible(gpus, "1,GPU-a")], visible(gpus, ""), len(visible(gpus, None))
    (['MIG-b1', 'MIG-b2', 'GPU-aa'], [], 3)

    Raises:
        BadSetting: a word of the list names no GPU, or more than one.
    """
    if chosen is None:
        return list(gpus)
    found: list[Gpu] = []
    for word in (word.strip() for word in chosen.split(",")):
        if word in ("", "-1", "NoDevFiles"):  # CUDA reads no further
            break
        if re.fullmatch(r"\d+", word):
            meant = [gpu for gpu in gpus if gpu.index == int(word)]
        else:
            meant = [gpu for gpu in gpus if gpu.uuid == word] or [
                gpu for gpu in gpus if gpu.uuid.startswith(word) or gpu.parent.startswith(word)
            ]
        if not meant or len({gpu.parent for gpu in meant}) > 1:
            known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "no GPU"
            what = "more than one GPU" if meant else "no GPU"
            raise BadSetting(f"{variable}={chosen!r}: {word!r} is {what} of this machine, which has {known}. Correct it, or unset it.")
        found += [gpu for gpu in meant if gpu not in found]
    return found


def by_use(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The least busy first: memory used, then utilisation; those that are largely in use last; equal ones in their order.

    >>> idle, full = Gpu("GPU-1", "GPU-1", 1, utilisation=3), Gpu("GPU-0", "GPU-0", 0, memory_used=1 << 30)
    >>> [gpu.uuid for gpu in by_use([full, idle])]
    ['GPU-1', 'GPU-0']
    """
    return sorted(gpus, key=lambda gpu: (gpu.is_largely_used, gpu.memory_used, gpu.utilisation))


def told_of_use(chosen: Sequence[Gpu]) -> list[str]:
    """A warning where other programs largely use some of the GPUs that were chosen, with what to type instead.

    >>> told_of_use([Gpu("GPU-5f", "GPU-5f", 0, "", 60 << 30, 97, 80 << 30), Gpu("GPU-6a", "GPU-6a", 1)])
    ['taken although other programs use it: GPU 0 (GPU-5f: 60 of 80 GiB used, 97 % busy). Type --here_gpus 1 to take the least busy.']
    """
    used = [gpu for gpu in chosen if gpu.is_largely_used]
    if not used:
        return []
    each = ", ".join(f"GPU {gpu.index} ({gpu.uuid}: {_used(gpu)}{gpu.utilisation} % busy)" for gpu in used)
    left = len(chosen) - len(used)
    how = f"Type --here_gpus {left} to take the least busy." if left else "Wait for them, or type --device cpu."
    return [f"taken although other programs use {'it' if len(used) == 1 else 'them'}: {each}. {how}"]


def _used(gpu: Gpu) -> str:
    return f"{gpu.memory_used / (1 << 30):.0f} of {gpu.memory / (1 << 30):.0f} GiB used, " if gpu.memory else ""


def told_of_order(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[str]:
    """A note where CUDA_VISIBLE_DEVICES numbers GPUs that are unequal: other CUDA programs count the fastest first.

    >>> unequal = [Gpu("GPU-5f", "GPU-5f", 0, "L4"), Gpu("GPU-6a", "GPU-6a", 1, "H100")]
    >>> len(told_of_order(unequal, {"CUDA_VISIBLE_DEVICES": "0"})), told_of_order(unequal, {"CUDA_VISIBLE_DEVICES": "GPU-5f"})
    (1, [])
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES", "")
    is_clear = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) < 2
    if is_clear or not any(word.strip().isdecimal() for word in chosen.split(",")):
        return []
    how = "CUDA programs number unequal GPUs otherwise, unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set"
    return [f"CUDA_VISIBLE_DEVICES={chosen} is read as nvidia-smi counts, by PCI bus; other {how}."]


@dataclass(slots=True)
class Claim:
    """The devices of one launch on this node. Its locks go when the last process that shares them ends."""

    ranks: int
    devices: tuple[str, ...] = ()  # UUIDs; ("mps",) on a Mac; empty: the CPU
    locks: list[int] = field(default_factory=list)  # open files, one for each GPU of `devices`
    notes: tuple[str, ...] = ()  # sentences for the user: GPUs that are left out, or that other programs use

    def release(self) -> None:
        for lock in self.locks:
            os.close(lock)
        self.locks.clear()


def claim(
    here: int | None,
    device: str = "auto",
    devices: Sequence[str] = (),
    *,
    locked: bool = True,
    asked_by: str = "--here_gpus",
    environ: Mapping[str, str] | None = None,
) -> Claim:
    """Take the devices for `here` ranks (None: every GPU that no other launch holds, or one CPU process), the least busy GPUs first.

    A process that forks after this shares the locks: they last until both have ended.

    Args:
        device: auto | cuda | mps | cpu
        devices: UUIDs to choose among; empty: what CUDA_VISIBLE_DEVICES leaves.
        locked: False only looks, for a plan that is printed.
        asked_by: where `here` is from, for messages.
    Raises:
        BadGpuMap: more GPUs than there are, or than other launches leave.
        BadSetting: `device` is not here, or CUDA_VISIBLE_DEVICES names no GPU.
    """
    environ = os.environ if environ is None else environ
    if here is not None and here < 1:
        raise BadGpuMap(
            f"--here_gpus {here}: write how many training processes this machine runs, from 1 up. Without GPUs they use the CPU."
        )
    is_mac = sys.platform == "darwin" and os.uname().machine == "arm64"
    if device == "cpu" or (device == "auto" and here is not None and here > 1 and is_mac):
        return Claim(here or 1)
    if device == "mps" or (device == "auto" and is_mac):
        return _claim_mps(here, is_mac, asked_by)
    gpus, unusable = look()
    is_chosen = bool(devices) or environ.get("CUDA_VISIBLE_DEVICES") is not None
    notes = told_of_order(gpus, environ) if is_chosen else unusable
    seen = visible(gpus, ",".join(devices), "devices") if devices else visible(gpus, environ.get("CUDA_VISIBLE_DEVICES"))
    if not seen:
        if device == "cuda" or devices:
            hidden = f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')!r} hides all {len(gpus)}."
            why = hidden if gpus else " ".join(unusable) or f"{_why_none()}."
            raise BadSetting(f"--device cuda, but there is no GPU to use: {why} Type --device cpu to train on the CPU.")
        return Claim(here or 1, notes=tuple(notes))
    if here is not None and here > len(seen):
        of_all = f" of the {len(gpus)} here, by CUDA_VISIBLE_DEVICES" if len(seen) < len(gpus) else ""
        raise BadGpuMap(
            f"{asked_by} {here}, and this machine has {_count(len(seen))} to use{of_all}. Type --here_gpus {len(seen)} or less, "
            f"or --device cpu for CPU processes.{''.join(f' {note}' for note in notes)}"
        )
    return _claim_gpus(here, by_use(seen), locked, asked_by, notes)


def _claim_mps(here: int | None, is_mac: bool, asked_by: str) -> Claim:
    if not is_mac:
        raise BadSetting("--device mps needs a Mac with an Apple processor. Type --device auto.")
    if here not in (None, 1):
        raise BadGpuMap(f"{asked_by} {here} with --device mps: a Mac has one GPU. Type --here_gpus 1, or --device cpu.")
    return Claim(1, ("mps",))


def _claim_gpus(here: int | None, gpus: Sequence[Gpu], locked: bool, asked_by: str, notes: Sequence[str]) -> Claim:
    taken: list[tuple[Gpu, int]] = []  # with their locks
    for gpu in gpus:
        if len(taken) == here:
            break
        lock = _try_lock(gpu.uuid)
        if lock is not None:
            taken.append((gpu, lock))
    taken.sort(key=lambda one: (one[0].index, one[0].uuid))
    chosen = [gpu for gpu, _ in taken]
    devices, locks = tuple(gpu.uuid for gpu in chosen), [lock for _, lock in taken]
    claimed = Claim(len(chosen), devices, locks, (*notes, *told_of_use(chosen)))
    is_enough = len(chosen) >= (here or 1)
    if not locked or not is_enough:
        claimed.release()
    if not is_enough:
        wish = f"{asked_by} {here}, and " if here else ""
        raise BadGpuMap(
            f"{wish}other launches hold {len(gpus) - len(chosen)} of the {_count(len(gpus))} of this machine. Wait for them, "
            f"{f'type --here_gpus {len(chosen)}, ' if chosen else ''}or train on the CPU with --device cpu."
        )
    return claimed


def _try_lock(uuid: str) -> int | None:
    """An open file that holds the lock of a GPU; None when another launch has it."""
    held = dict(word.split("=") for word in os.environ.get(HELD_VARIABLE, "").split(",") if word)
    if uuid in held:
        return os.dup(int(held[uuid]))
    lock = _open_lock(uuid)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _open_lock(uuid: str) -> int:
    folder = os.environ.get(LOCKS_VARIABLE) or _LOCKS
    path = os.path.join(folder, re.sub(r"[^\w.-]", "_", uuid))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            os.chmod(folder, 0o1777)  # users of a node share it, and cannot remove each other's locks
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise NotWritable(f"{folder} is not a folder. Remove it, or name another place for the locks of GPUs with {LOCKS_VARIABLE}.")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644))
        # reading is enough to lock, and works on a file that another user made
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise NotWritable(
            f"{path}: {(error.strerror or str(error)).lower()}. The locks of GPUs need a folder that all launches of this machine "
            f"can write; name one with {LOCKS_VARIABLE}."
        ) from None


def _why_none() -> str:
    """Why no GPU was found, from what can be seen without a driver."""
    try:
        import pynvml
    except ImportError:
        return "the package that lists them is missing (pip install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver does not answer ({error})"
    pynvml.nvmlShutdown()
    return "the NVIDIA driver lists none"


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' * (gpus != 1)}"
