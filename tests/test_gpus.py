"""Which GPUs a launch takes: the least busy, inside CUDA_VISIBLE_DEVICES, and never one that another launch has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_nvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel import gpus
from bert_train_parallel.errors import BadGpuMap, BadSetting, NotWritable
from bert_train_parallel.gpus import Gpu, by_use, claim, list_gpus, visible

A, B, C = "GPU-aa", "GPU-bb", "GPU-cc"
D1, D2 = "MIG-d1", "MIG-d2"


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs: one full and busy, two with equal memory in use, one in MIG mode with two instances."""
    for name, value in fake_nvml.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path / "fake_nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("sys.platform", "linux")


def taken(here: int | None, **more: object) -> tuple[str, ...]:
    """What a claim takes; its locks are given back."""
    made = claim(here, **more)  # type: ignore[arg-type]
    made.release()
    assert made.ranks == len(made.devices)
    return made.devices


@pytest.mark.usefixtures("four")
def test_gpus_are_listed_in_the_order_of_their_buses_with_mig_instances_as_devices_of_their_own() -> None:
    assert [(gpu.uuid, gpu.parent, gpu.index) for gpu in list_gpus()] == [
        (A, A, 0),
        (B, B, 1),
        (C, C, 2),
        (D1, "GPU-dd", 3),
        (D2, "GPU-dd", 3),
    ]


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    "here, chosen", [(1, (D2,)), (2, (D1, D2)), (3, (C, D1, D2)), (4, (B, C, D1, D2)), (None, (A, B, C, D1, D2)), (5, (A, B, C, D1, D2))]
)
def test_the_least_busy_are_taken_by_memory_then_by_use_and_handed_out_in_bus_order(here: int | None, chosen: tuple[str, ...]) -> None:
    assert taken(here) == chosen


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    "listed, here, chosen",
    [
        ("0,1", 1, (B,)),
        ("0", None, (A,)),
        ("GPU-a, GPU-c", None, (A, C)),
        ("MIG-d1,GPU-bb", None, (B, D1)),
        ("GPU-dd", None, (D1, D2)),
        ("3", 1, (D2,)),
        ("1,-1,2", None, (B,)),
    ],
)
def test_only_what_cuda_visible_devices_leaves_is_taken(
    monkeypatch: pytest.MonkeyPatch, listed: str, here: int | None, chosen: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert taken(here) == chosen


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize("listed", ["4", "GPU-x", "GPU-", "0;1"])
def test_a_list_that_names_no_gpu_or_several_is_refused(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with pytest.raises(BadSetting, match="CUDA_VISIBLE_DEVICES"):
        claim(1)


@pytest.mark.usefixtures("four")
def test_hidden_gpus_mean_the_cpu_unless_cuda_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (claim(None).ranks, claim(3).ranks, claim(3).devices) == (1, 3, ())
    with pytest.raises(BadSetting, match="hides all 5"):
        claim(None, "cuda")


@pytest.mark.usefixtures("four")
def test_more_than_there_are_is_one_sentence_with_what_to_type() -> None:
    with pytest.raises(BadGpuMap, match=r"--here_gpus 6, and this machine has 5 GPUs to use.*--here_gpus 5"):
        claim(6)
    assert claim(6, "cpu").devices == ()


@pytest.mark.usefixtures("four")
def test_two_claims_at_once_never_share_a_gpu() -> None:
    first = claim(2)
    second = claim(2)
    assert (first.devices, second.devices) == ((D1, D2), (B, C))
    with pytest.raises(BadGpuMap, match=r"other launches hold 4 of the 5 GPUs.*type --here_gpus 1"):
        claim(2)
    third = claim(None)
    assert third.devices == (A,)
    with pytest.raises(BadGpuMap, match="other launches hold 5"):
        claim(None)
    first.release()
    assert taken(None) == (D1, D2)


@pytest.mark.usefixtures("four")
def test_a_look_takes_no_lock() -> None:
    assert claim(5, locked=False).devices == claim(5, locked=False).devices == taken(5)


@pytest.mark.usefixtures("four")
def test_a_lock_lasts_as_long_as_any_process_that_shares_it() -> None:
    made = claim(5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    made.release()
    with pytest.raises(BadGpuMap):
        claim(1)
    os.close(writing)
    os.waitpid(child, 0)
    assert len(taken(5)) == 5


@pytest.mark.usefixtures("four")
def test_a_place_for_locks_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "no" / "folder"):
        monkeypatch.setenv(gpus.LOCKS_VARIABLE, str(place))
        with pytest.raises(NotWritable, match=gpus.LOCKS_VARIABLE):
            claim(1)


def test_without_a_driver_the_cpu_does_the_work(tmp_path: Path) -> None:
    environment = {**os.environ, **fake_nvml.install(tmp_path, "no driver")}
    code = (
        "from bert_train_parallel import gpus\n"
        "print(gpus.list_gpus(), gpus.claim(None).ranks, gpus.claim(3).ranks)\n"
        "try: gpus.claim(None, 'cuda')\nexcept gpus.BadSetting as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] 1 3\n")
    assert "the NVIDIA driver does not answer (Driver Not Loaded)" in done.stdout


def test_a_number_of_processes_below_one_is_refused() -> None:
    for here in (0, -1):
        with pytest.raises(BadGpuMap, match=f"--here_gpus {here}"):
            claim(here, "cpu")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.integers(0, 8))
def test_no_gpu_that_is_left_is_less_busy_than_one_that_is_taken(uses: list[tuple[int, int]], count: int) -> None:
    listed = [Gpu(f"GPU-{number}", f"GPU-{number}", number, "", used, busy) for number, (used, busy) in enumerate(uses)]
    order = by_use(visible(listed, None))
    for chosen in order[:count]:
        for left in order[count:]:
            assert (chosen.memory_used, chosen.utilisation) <= (left.memory_used, left.utilisation)
