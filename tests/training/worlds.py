"""Real worlds of a few CPU processes for tests: each rank is the command itself, forked from a process that has loaded torch."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bert_train_parallel.progress import Event, read_events
from bert_train_parallel.rank import Rank
from bert_train_parallel.run_files import RunFiles

_PRELOAD = ["bert_train_parallel.training.run", "transformers.models.bert.modeling_bert", "pytest"]


class TestWorld:
    """Ranks that run; kill them, ask them to stop, or wait for them."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, processes: list[ForkServerProcess], outputs: list[Path]) -> None:
        self.processes, self.outputs = processes, outputs

    def wait(self, timeout: float = 200) -> list[int]:
        """Exit codes of all ranks, a signal as in a shell."""
        until = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert None not in codes, f"ranks that did not end: {codes}\n{self.output()}"
        return [code if code >= 0 else 128 - code for code in codes if code is not None]

    def kill(self, number: int = signal.SIGKILL) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        if number == signal.SIGKILL:
            for process in self.processes:
                process.join(60)

    def output(self, rank: int | None = None) -> str:
        return "\n".join(path.read_text() for path in (self.outputs if rank is None else [self.outputs[rank]]))


def start_world(
    ranks: int,
    *arguments: object,
    folder: Path,
    patch: Callable[[], None] | None = None,
    of_each: Sequence[Sequence[object]] | None = None,
    **who: Any,
) -> TestWorld:
    """Start the command with these arguments in each rank of a world on this machine.

    Args:
        folder: for what the ranks print.
        patch: called in each rank before the command; must be importable.
        of_each: further arguments of each rank, which then is a node of its own.
        who: fields of Rank, such as `attempt` and `job`; without `device` and `backend` ranks meet on CPUs.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"rank_{rank}.{time.time_ns()}.txt" for rank in range(ranks)]
    processes = []
    for rank in range(ranks):
        place = {"local_rank": rank, "local_world_size": ranks}
        if of_each:
            place = {"local_rank": 0, "local_world_size": 1, "node_rank": rank, "nodes": ranks}
        me = Rank(rank=rank, world_size=ranks, master_port=port, **({"device": "cpu", "backend": "gloo"} | place | who))
        environment = (me.to_environ() if ranks > 1 or who else {}) | _for_ranks
        words = [str(word) for word in (*arguments, *(of_each[rank] if of_each else ()))]
        process = context.Process(target=_rank_main, args=(environment, words, str(outputs[rank]), patch))
        process.start()
        processes.append(process)
    return TestWorld(processes, outputs)


def run_world(ranks: int, *arguments: object, folder: Path, patch: Callable[[], None] | None = None, **who: Any) -> TestWorld:
    """A world that ran to its end, well."""
    world = start_world(ranks, *arguments, folder=folder, patch=patch, **who)
    codes = world.wait()
    assert codes == [0] * ranks, f"exit codes {codes}\n{world.output()}"
    return world


def _rank_main(environment: dict[str, str], arguments: Sequence[str], output: str, patch: Callable[[], None] | None) -> None:
    os.environ.update(environment)
    file = open(output, "w", buffering=1)  # noqa: SIM115 (open to the end of the process)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    code = 1
    try:
        if patch:
            patch()
        from bert_train_parallel.training.cli import main

        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    file.flush()
    os._exit(code)


def wait_for_step(files: RunFiles, step: int, timeout: float = 120) -> None:
    """Return when a run has told of a step."""
    until = time.monotonic() + timeout
    while not any(event.step >= step for event in read_events(files.progress)):
        assert time.monotonic() < until, f"no step {step} in {files.progress}"
        time.sleep(0.02)


def events(files: RunFiles, kind: str) -> list[Event]:
    return [event for event in read_events(files.progress) if event.kind == kind]


def losses(files: RunFiles) -> dict[int, float]:
    """The loss of each step; of a step that was repeated after a restart, the last."""
    return {event.step: event.figures["loss"] for event in events(files, "step")}


def weights(files: RunFiles, step: int) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(files.checkpoints / f"step_{step:08d}" / "model.safetensors")


_for_ranks: dict[str, str] = {}  # variables that patches look at
_ROWS_LOG = "TEST_ROWS_LOG"


def note_rows() -> None:
    """A patch: each rank notes the rows that enter the model in training."""
    from bert_train_parallel.training import data_parallel

    make_batch = data_parallel.make_batch
    place = Path(os.environ[_ROWS_LOG]) / f"rows_{os.environ.get('RANK', '0')}.jsonl"

    def noting(rows: Any, numbers: Any, total_weight: float) -> Any:
        with open(place, "a") as file:
            file.write(json.dumps(numbers.tolist()) + "\n")
        return make_batch(rows, numbers, total_weight)

    data_parallel.make_batch = noting


@contextlib.contextmanager
def noted_rows(folder: Path) -> Iterator[Callable[[], list[int]]]:
    """Within the block, worlds with the patch `note_rows` note their rows in this folder; calling what it gives reads them."""
    _for_ranks[_ROWS_LOG] = str(folder)
    try:
        yield lambda: [row for path in folder.glob("rows_*.jsonl") for line in path.read_text().splitlines() for row in json.loads(line)]
    finally:
        del _for_ranks[_ROWS_LOG]


def slow_second_rank() -> None:
    """A patch: by the clock that shares are measured with, rank 1 takes three times as long for a token as rank 0.

    The clock goes on by tokens alone, so that how busy the machine is does not matter.
    """
    import torch

    from bert_train_parallel.models.packed import PackedModel
    from bert_train_parallel.training import data_parallel, stopwatch

    seconds = 500e-6 * (3 if os.environ.get("RANK") == "1" else 1)
    forward, now = PackedModel.forward, 0.0

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    def slowly(self: PackedModel, tokens: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += len(tokens) * seconds * self.training
        return forward(self, tokens, *others)

    PackedModel.forward = slowly  # type: ignore[method-assign]
    stopwatch.time = data_parallel.time = Clock()  # type: ignore[assignment]


def memory_for_few_tokens() -> None:
    """A patch: more than 60 tokens at once do not fit, in a world of one; in a larger one, rank 1 once has no room."""
    import torch

    from bert_train_parallel.models.packed import PackedModel

    forward, calls = PackedModel.forward, 0

    def tightly(self: PackedModel, tokens: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += self.training
        alone = "RANK" not in os.environ
        if self.training and (len(tokens) > 60 if alone else (calls == 5 and os.environ["RANK"] == "1")):
            raise torch.OutOfMemoryError("no room for the sake of the test")
        return forward(self, tokens, *others)

    PackedModel.forward = tightly  # type: ignore[method-assign]


def second_rank_has_no_memory_where_nothing_can_be_tried_again() -> None:
    """A patch: rank 1 has no room in a pass that averages; and who lets go of the group waits for all others, as with NCCL."""
    import torch

    from bert_train_parallel.models.packed import PackedModel

    forward, calls = PackedModel.forward, 0

    def tightly(self: PackedModel, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += self.training
        if calls > 12 and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("no room for the sake of the test")
        return forward(self, *inputs)

    PackedModel.forward = tightly  # type: ignore[method-assign]
    torch.distributed.destroy_process_group = lambda: time.sleep(600)


def loss_becomes_nan() -> None:
    """A patch: after some steps the model's outputs are not numbers any more."""
    import torch

    from bert_train_parallel.models.packed import PackedModel

    forward, calls = PackedModel.forward, 0

    def breaking(self: PackedModel, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += self.training
        return forward(self, *inputs) * (float("nan") if calls > 20 else 1.0)

    PackedModel.forward = breaking  # type: ignore[method-assign]


def note_tokens() -> None:
    """A patch: the process notes how many tokens each training batch has, and how many rows enter the first linear layer for it."""
    import torch

    from bert_train_parallel.models.packed import PackedModel

    place = Path(os.environ[_ROWS_LOG]) / "tokens.jsonl"
    forward = PackedModel.forward

    def noting(self: PackedModel, tokens: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        entered: list[int] = []
        linears = [module for module in self.modules() if isinstance(module, torch.nn.Linear)]
        handles = [layer.register_forward_pre_hook(lambda layer, given: entered.append(given[0].shape[:-1].numel())) for layer in linears]
        outputs = forward(self, tokens, *others)
        for handle in handles:
            handle.remove()
        if self.training:
            with open(place, "a") as file:
                file.write(json.dumps([len(tokens), entered]) + "\n")
        return outputs

    PackedModel.forward = noting  # type: ignore[method-assign]


def note_checkpoints() -> None:
    """A patch: each rank prints which checkpoints it writes."""
    from bert_train_parallel.training import checkpoints

    write = checkpoints.write

    def noting(folder: Path, step: int, *others: Any) -> Path:
        place = write(folder, step, *others)
        print("wrote", place.name)
        return place

    checkpoints.write = noting


def note_gradients() -> None:
    """A patch: each rank keeps the gradients of its first steps as they are when the optimizer gets them."""
    import torch

    from bert_train_parallel.training.optimizer import Updater

    place, update, steps = Path(os.environ[_ROWS_LOG]), Updater.update, 0

    def noting(self: Updater, learning_rate: float) -> None:
        nonlocal steps
        steps += 1
        if steps <= 5:
            gradients = [parameter.grad.clone() for parameter in self._parameters if parameter.grad is not None]
            torch.save(gradients, place / f"gradients_{os.environ.get('RANK', '0')}_{steps}.pt")
        update(self, learning_rate)

    Updater.update = noting  # type: ignore[method-assign]


def gradients(folder: Path, rank: int, step: int) -> Any:
    """What `note_gradients` kept, in float64."""
    import torch

    return [gradient.double() for gradient in torch.load(folder / f"gradients_{rank}_{step}.pt", weights_only=True)]
