"""Which of the words that libraries fail with say that a peer has gone, and which that something is wrong here."""

from __future__ import annotations

import pytest

from bert_train_parallel.lost_peer import tells_of_lost_peer

# as the libraries say them, addresses apart
OF_A_LOST_PEER = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3851",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:542] Read error [10.0.0.2]:4242: Connection reset by peer",
    (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited or there was a network error, "
        "NCCL version 2.27.3\nncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
        "Last error:\nsocketProgress: Connection closed by remote peer beta<41239>"
    ),
    (
        "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but store->get('0') "
        "got error: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
    ),
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "BrokenPipeError: [Errno 32] Broken pipe",
]
OF_THIS_MACHINE = [
    (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for "
        "details), NCCL version 2.27.3\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\n"
        "Error while creating shared memory segment /dev/shm/nccl-cjY8K5 (size 10617216), error: No space left on device (28)"
    ),
    # of a torch that was built with an NCCL that had no error for this
    (
        "NCCL error in: ProcessGroupNCCL.cpp:1191, unhandled system error, NCCL version 2.11.4\nncclSystemError: System call (e.g. socket, "
        "malloc) or external library call failed or device error. It can be also caused by unexpected exit of a remote peer."
    ),
    (
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
    (
        "NCCL error in: NCCLUtils.cpp:77, invalid usage\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000"
    ),
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation to complete",
    "ValueError: no such label",
]


@pytest.mark.parametrize("words", OF_A_LOST_PEER)
def test_a_lost_peer_is_known_by_the_words_of_each_library(words: str) -> None:
    assert tells_of_lost_peer(words)


@pytest.mark.parametrize("words", OF_THIS_MACHINE)
def test_a_fault_of_this_machine_is_no_lost_peer(words: str) -> None:
    assert not tells_of_lost_peer(words)
