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
    fake_nvml.use(tmp_path, monkeypatch)


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


@pytest.mark.parametrize("fails", ["at once", "later"])
def test_a_gpu_that_has_failed_is_left_out_and_said_and_the_others_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    aa, bb = {"uuid": A, "bus": "1", "used": 0, "busy": 0}, {"uuid": B, "bus": "2", "used": 0, "busy": 0}
    fake_nvml.use(tmp_path, monkeypatch, [aa | {"fails": fails}, bb])
    made = claim(None, locked=False)
    assert made.devices == (B,)
    (note,) = made.notes
    assert note.startswith("GPU 0 is left out: the NVIDIA driver says")
    with pytest.raises(BadGpuMap, match=r"has 1 GPU to use.*GPU 0 is left out"):
        claim(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", B)  # who names those to use knows
    assert claim(1, locked=False).notes == ()


def test_a_gpu_in_mig_mode_without_an_instance_is_no_gpu_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none_made = {"uuid": A, "bus": "1", "used": 0, "busy": 0, "instances": [], "is_mig": True}
    fake_nvml.use(tmp_path, monkeypatch, [none_made, {"uuid": B, "bus": "2", "used": 0, "busy": 0}])
    assert [(gpu.uuid, gpu.index) for gpu in list_gpus()] == [(B, 1)]
    assert ["GPU 0 is left out: it is in MIG mode" in note for note in claim(None, locked=False).notes] == [True]
    fake_nvml.use(tmp_path, monkeypatch, [none_made])
    assert claim(None).devices == ()
    with pytest.raises(BadSetting, match="no GPU to use: GPU 0 is left out: it is in MIG mode"):
        claim(None, "cuda")


@pytest.mark.parametrize(
    ("used", "busy", "programs", "is_said"), [(41, 0, [], True), (40, 99, [], False), (9, 51, [7], True), (9, 50, [7], False)]
)
def test_a_gpu_that_other_programs_largely_use_is_taken_last_and_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, busy: int, programs: list[int], is_said: bool
) -> None:
    asked = {"uuid": A, "bus": "1", "used": used * fake_nvml.GIB, "busy": busy, "programs": programs}
    fake_nvml.use(tmp_path, monkeypatch, [asked, {"uuid": B, "bus": "2", "used": 10 * fake_nvml.GIB, "busy": 0}])
    both = claim(None, locked=False)
    assert both.devices == (A, B)
    figures = f"GPU 0 ({A}: {used} of 80 GiB used, {busy} % busy)"
    words = f"taken although other programs use it: {figures}. Type --here_gpus 1 to take the least busy."
    assert both.notes == ((words,) if is_said else ())
    assert claim(1, locked=False).devices == ((B,) if is_said or used > 10 else (A,))
    assert claim(1, locked=False).notes == ()


@pytest.mark.usefixtures("four")
def test_the_locks_of_a_claim_are_in_the_order_of_its_devices() -> None:
    made = claim(4)
    files = [os.fstat(lock) for lock in made.locks]
    places = [Path(os.environ[gpus.LOCKS_VARIABLE], device).stat() for device in made.devices]
    made.release()
    assert [os.path.samestat(file, place) for file, place in zip(files, places, strict=True)] == [True] * 4


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
