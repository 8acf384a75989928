"""A stand-in for NVML on machines without GPUs: `pynvml` as a module that answers from a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
"""The part of pynvml that the launcher uses, for the GPUs of the JSON file beside it."""
import json, pathlib
from types import SimpleNamespace

class NVMLError(Exception):
    pass

GPUS = json.loads(pathlib.Path(__file__).with_name("gpus.json").read_text())

def nvmlInit():
    if GPUS == "no driver":
        raise NVMLError("Driver Not Loaded")

def nvmlShutdown():
    pass

def nvmlDeviceGetCount():
    return len(GPUS)

def nvmlDeviceGetHandleByIndex(index):
    if GPUS[index].get("fails") == "at once":
        raise NVMLError("Unknown Error")
    return GPUS[index]

def nvmlDeviceGetUUID(device):
    if device.get("fails") == "later":
        raise NVMLError("GPU is lost")
    return device["uuid"]

def nvmlDeviceGetName(device):
    return device.get("name", "Fake GPU")

def nvmlDeviceGetComputeRunningProcesses(device):
    return [SimpleNamespace(pid=pid) for pid in device.get("programs", [])]

def nvmlDeviceGetPciInfo(device):
    return SimpleNamespace(busId=device["bus"].encode())

def nvmlDeviceGetMemoryInfo(device):
    return SimpleNamespace(used=device["used"], total=80 << 30)

def nvmlDeviceGetUtilizationRates(device):
    if device.get("instances"):
        raise NVMLError("Not Supported")
    return SimpleNamespace(gpu=device["busy"])

def nvmlDeviceGetMigMode(device):
    if "instances" not in device:
        raise NVMLError("Not Supported")
    return bool(device["instances"] or device.get("is_mig")), 0

def nvmlDeviceGetMaxMigDeviceCount(device):
    return 7

def nvmlDeviceGetMigDeviceHandleByIndex(device, index):
    if index >= len(device["instances"]):
        raise NVMLError("Not Found")
    return device["instances"][index]
'''

GIB = 1 << 30
# "fails": "at once" or "later"; "programs": the ids of those that compute on it; "is_mig" without "instances": none was made
# as NVML lists them, which need not be the order of the buses: the one in MIG mode stands first and has the last bus
FOUR = [
    {"uuid": "GPU-dd", "bus": "00000000:C1:00.0", "used": 0, "busy": 0, "instances": [
        {"uuid": "MIG-d1", "used": 2 * GIB},
        {"uuid": "MIG-d2", "used": 1 * GIB},
    ]},
    {"uuid": "GPU-aa", "bus": "00000000:01:00.0", "used": 40 * GIB, "busy": 97, "instances": []},
    {"uuid": "GPU-bb", "bus": "00000000:41:00.0", "used": 3 * GIB, "busy": 5},
    {"uuid": "GPU-cc", "bus": "00000000:81:00.0", "used": 3 * GIB, "busy": 0},
]  # fmt: skip


def install(folder: Path, gpus: Any = FOUR) -> dict[str, str]:
    """Write the module; what it takes for a process to import it, with locks of its own."""
    place = folder / "fake_nvml"
    place.mkdir(exist_ok=True)
    (place / "pynvml.py").write_text(MODULE)
    (place / "gpus.json").write_text(json.dumps(gpus))
    return {"PYTHONPATH": str(place), "BERT_TRAIN_LOCKS": str(folder / "locks")}


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: Any = FOUR) -> None:
    """The same for this process, until the test ends."""
    for name, value in install(folder, gpus).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(folder / "fake_nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
