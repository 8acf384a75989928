"""What a training on a CPU gives back to the system, and how a lack of memory is told."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bert_train_parallel.errors import OutOfMemory
from bert_train_parallel.training import memory

GAPS = """
import numpy as np
from bert_train_parallel.training import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

np.ones(30 << 20, np.uint8)  # freed at once: from now on glibc takes blocks up to this size from its heap
blocks = [np.ones(1 << 20, np.uint8) for _ in range(400)]
del blocks[::2]
before = resident()
print(memory.return_freed(above=1 << 40), memory.return_freed(above=100 << 20), before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or memory._glibc() is None, reason="needs a glibc that tells what it keeps")
def test_gaps_between_tensors_go_back_to_the_system_where_they_are_large() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    untouched, returned, megabytes = done.stdout.split()
    assert (untouched, returned) == ("False", "True")
    assert int(megabytes) >= 150  # of 200


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_lack_of_memory_in_whatever_words_is_told_in_a_sentence_and_other_errors_keep_theirs(error: Exception) -> None:
    world: Any = SimpleNamespace(device=torch.device("cuda", 0), hosts=("alpha",), rank=SimpleNamespace(rank=0))
    with pytest.raises(OutOfMemory, match="alpha, cuda:0: no memory left for the work of a step"), memory.errors_as_sentences(world):
        raise error
    with pytest.raises(RuntimeError, match="illegal"), memory.errors_as_sentences(world):
        raise RuntimeError("CUDA error: an illegal memory access")
