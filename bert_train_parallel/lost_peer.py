"""Whether an error's words say that another process of the world has gone: then its end is the one to tell, not this one's."""

from __future__ import annotations

import re

_LOST_PEER = re.compile(
    r"connection (was )?(likely )?(reset|closed|refused|aborted)|connection(reset|refused|aborted)error|broken ?pipe|socket closed|"
    r"closed by peer|peer (has )?(closed|exited|gone)|remote peer closed|remote process exited|ncclremoteerror|recvvalue failed|"
    r"failed to (recv|send)\b|unexpected eof",
    re.IGNORECASE,
)


def tells_of_lost_peer(words: str) -> bool:
    """Whether these are the words of gloo, NCCL, torch's store or the system for a connection whose other end has gone.

    NCCL's "system error" is not one of them: it is mostly of this machine, such as a full /dev/shm.

    >>> tells_of_lost_peer("[pair.cc:553] Connection closed by peer"), tells_of_lost_peer("CUDA error: an illegal memory access")
    (True, False)
    """
    return _LOST_PEER.search(words) is not None
