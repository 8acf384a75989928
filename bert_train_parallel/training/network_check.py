"""What `launch.py --check` runs in every rank: all-reduces between all of them, and what they would cost a training step."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from bert_train_parallel.errors import LaunchFailed, run_command
from bert_train_parallel.processes import end_with
from bert_train_parallel.rank import Rank
from bert_train_parallel.training.last_words import told_to_launcher
from bert_train_parallel.training.world import choose_device, meet

LARGEST = 256 << 20  # bytes
LONG_ENOUGH_S = 0.5  # an all-reduce of this duration measures bandwidth, not latency
PATIENCE = timedelta(seconds=60)  # for one all-reduce
BERT_BASE = 440_000_000  # bytes of float32 gradients


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("launch", lambda: told_to_launcher(check))


def check() -> int:
    """Measure, and print from rank 0."""
    rank = Rank.from_environ()
    backend = "nccl" if rank.device == "cuda" and rank.backend == "nccl" else "gloo"
    device = choose_device("cuda" if backend == "nccl" else "cpu", rank)
    meet(rank, device, backend, PATIENCE)
    try:
        latency = seconds(4, rank, device)
        size, duration = 1 << 20, 0.0
        while True:
            duration = seconds(size, rank, device)
            if duration >= LONG_ENOUGH_S or size >= LARGEST:
                break
            size *= 4
    except RuntimeError as error:
        if not tells_of_timeout(str(error)):
            raise
        raise LaunchFailed(
            f"An all-reduce between {rank.world_size} ranks did not end within {PATIENCE.total_seconds():g} s, although they have met: "
            f"something between the nodes drops large or later messages. Compare the MTU of their interfaces, and see their firewalls.",
            1,
        ) from error
    dist.destroy_process_group()  # of ranks that have all come this far: after a failure NCCL would wait here for the others
    if rank.is_first:
        print(report(rank, backend, latency, size, duration), flush=True)
    return 0


def tells_of_timeout(words: str) -> bool:
    """Whether an error of an all-reduce says that it took too long. (Where NCCL's takes too long, torch ends the process instead.)

    >>> tells_of_timeout("Timed out waiting 60000ms for recv operation to complete"), tells_of_timeout("CUDA runtime error")
    (True, False)
    """
    return re.search(r"\btim(ed|e)[ -]?out", words, re.IGNORECASE) is not None


def seconds(size: int, rank: Rank, device: torch.device) -> float:
    """How long an all-reduce of `size` bytes takes, the slowest rank's time; its sum is checked.

    The quicker of two: NCCL makes further connections at its first message of a size, as gloo does at its very first.

    Raises:
        LaunchFailed: the sum over the ranks is wrong.
    """
    return min(_seconds_once(size, rank, device) for _ in range(2))


def _seconds_once(size: int, rank: Rank, device: torch.device) -> float:
    values = torch.full((size // 4,), float(rank.rank + 1), device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()  # the values are there before the clock starts
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize()
    duration = torch.tensor([time.perf_counter() - began], device=device)
    expected = rank.world_size * (rank.world_size + 1) / 2
    if values.min().item() != expected or values.max().item() != expected:
        raise LaunchFailed(
            f"An all-reduce between {rank.world_size} ranks gave {values[0].item()} for {expected}: the network damages data.", 1
        )
    dist.all_reduce(duration, op=dist.ReduceOp.MAX)
    return float(duration.item())


def report(rank: Rank, backend: str, latency: float, size: int, duration: float) -> str:
    """
    >>> print(report(Rank(world_size=3, nodes=2), "gloo", 0.0004, 64_000_000, 0.5))
    3 ranks on 2 nodes agree and reach each other (gloo).
    All-reduce of 64 MB: 500 ms, 171 MB/s over each rank's link; of one number: 0.4 ms.
    A step of BERT-base (440 MB of gradients) would wait up to 3.4 s for it.
    >>> print(report(Rank(world_size=2), "nccl", 0.00002, 268_435_456, 0.0012).splitlines()[1])
    All-reduce of 268 MB: 1.2 ms, 223,696 MB/s over each rank's link; of one number: 0.02 ms.
    """
    crossing = 2 * (rank.world_size - 1) / rank.world_size * size  # what each rank sends in a ring
    return (
        f"{rank.world_size} ranks on {rank.nodes} node{'s' * (rank.nodes != 1)} agree and reach each other ({backend}).\n"
        f"All-reduce of {size / 1e6:.0f} MB: {shown(duration)}, {crossing / duration / 1e6:,.0f} MB/s over each rank's link; "
        f"of one number: {shown(latency)}.\n"
        f"A step of BERT-base (440 MB of gradients) would wait up to {shown(duration * BERT_BASE / size)} for it."
    )


def shown(duration: float) -> str:
    """
    >>> shown(3.44), shown(0.5), shown(0.0004), shown(0.00002)
    ('3.4 s', '500 ms', '0.4 ms', '0.02 ms')
    """
    return f"{duration:.1f} s" if duration >= 1 else f"{1e3 * duration:.3g} ms"


if __name__ == "__main__":
    end_with(main)
