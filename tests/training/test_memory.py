"""What a training on a CPU gives back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
