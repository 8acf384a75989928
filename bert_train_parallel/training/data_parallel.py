"""Every rank has the whole model and computes its share of the global batch; DDP averages the gradients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.data.batches import FloatArray, IntArray, Rows, make_batch, mix
from bert_train_parallel.errors import BadModel
from bert_train_parallel.models.heads import rank_loss, row_losses
from bert_train_parallel.models.inference import autocast, inputs_of, tells_of_memory, to_device
from bert_train_parallel.models.packed import PackedModel
from bert_train_parallel.training import checkpoints, evaluation, memory, pace
from bert_train_parallel.training.optimizer import Updater
from bert_train_parallel.training.room import Room
from bert_train_parallel.training.shares import Shares
from bert_train_parallel.training.signals import StopRequests
from bert_train_parallel.training.stopwatch import Stopwatch
from bert_train_parallel.training.strategy import StepResult, Sums
from bert_train_parallel.training.world import World

_MEASURE_EVERY = 10  # steps between looks at how fast the ranks are
_RETURN_EVERY = 64  # steps between looks at what the C library keeps of freed memory
_ADVISE_AFTER = 20  # steps after which the world is compared with fewer ranks
# buffers of a BERT are constants; the name of the setting changed in torch 2.13
_KEEP_BUFFERS = {
    "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}
_NO_ROWS = np.zeros(0, dtype=np.int64)


class DataParallel:
    """The strategy for models that fit one device; `Strategy` says what each method promises."""

    def __init__(self, model: PackedModel, rows: Rows, world: World, config: TrainConfig, task_type: str, requests: StopRequests) -> None:
        """Takes a config whose dtype is resolved; `requests` say whether this process was asked to end."""
        self.model = model.to(world.device).train()
        self.shares = Shares.of_setting(config.shares, world.size)
        self._rows, self._world, self._config, self._task_type, self._requests = rows, world, config, task_type, requests
        if config.gradient_checkpointing:
            self.model.checkpoint_gradients()
        _refuse_batch_norm(self.model)
        self._names: dict[Tensor, str] = {parameter: name.removeprefix("network.") for name, parameter in self.model.named_parameters()}
        self._updater = Updater(list(self.model.parameters()), config, world.device)
        self._watch, self._pace = Stopwatch(world.device), pace.Pace(world)
        self._network = self._averaging() if world.size > 1 else self.model
        self._room = Room(rows, config.micro_batch_size, world)
        self._clocks: list[float] = []  # of rank 0 after each step
        # loss x weight, weight and correct rows since `sums` was asked; on the device, so that a step need not wait for it
        self._counted = torch.zeros(3, dtype=torch.float32 if world.device.type == "mps" else torch.float64, device=world.device)
        self._rows_done = self._tokens_done = 0

    def set_up(self, numbers: IntArray) -> list[str]:
        notes = []
        if self._world.device.type == "cuda":
            self._room.find(len(numbers), self._try, self._updater.bytes_to_come())
        if self._world.size > 1:
            if not self.shares.fixed and not self.shares.speeds:
                self.shares = self.shares.after(*self._time_ranks(numbers))
                notes.append(pace.describe(self.shares, self._world.hosts))
            # DDP orders its buckets anew after its first backward: without this one, a run that goes on would
            # add up its first gradients in another order than the run that was never stopped
            self._backward(_NO_ROWS, 1.0)
        self._forget()
        return notes

    def step(self, numbers: IntArray, step: int, learning_rate: float) -> StepResult:
        lengths = self._room.lengths(numbers)
        share = self.shares.cut(lengths)[self._world.rank.rank]
        mine = numbers[share][np.argsort(lengths[share], kind="stable")]
        total_weight = float(self._rows.weights[numbers].sum()) or 1.0  # where no row counts, the gradient is zero
        self._watch.start()
        self._gradients(mine, mix(self._config.seed, step, share.start), total_weight)
        self._watch.lap(int(lengths[share].sum()))
        self._pace.send(bool(self._requests), *self._watch.read(), self._room.max_tokens)
        self._updater.update(learning_rate)
        if (step + 1) % _RETURN_EVERY == 0:
            self._return_freed()
        stop, clock = self._pace.receive()
        return StepResult(stop, clock, self._look_at_speeds(step, clock, int(lengths.sum())))

    def sums(self) -> Sums:
        counts = self._counted.new_tensor([self._rows_done, self._tokens_done])
        everywhere = self._world.sum(torch.cat([self._counted, counts])).tolist()
        self._counted.zero_()
        self._rows_done = self._tokens_done = 0
        return Sums(*everywhere)

    def outputs(self, rows: Rows) -> FloatArray | None:
        self.model.eval()
        self._return_freed()
        try:
            speeds, stop = self.shares.known_speeds, self._requests.raise_if_asked
            return evaluation.outputs(self.model, rows, self._world, self._config.dtype, speeds, stop)
        finally:
            self.model.train()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        values = {"scaler": self._updater.scaler.state_dict(), "shares": self.description(), "tokens_at_once": self._pace.limits}
        return self.model.state_dict(), checkpoints.optimizer_tensors(self._updater.optimizer, self._names), values

    def load(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], values: dict[str, Any], source: int) -> None:
        self.load_model(model, source)
        described = self._world.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in optimizer.items()}, source)
        tensors = {
            name: optimizer[name].to(self._world.device)
            if name in optimizer
            else torch.empty(shape, dtype=dtype, device=self._world.device)
            for name, (shape, dtype) in described.items()
        }
        self._world.send_tensors(tensors, source)
        checkpoints.load_optimizer(self._updater.optimizer, self._names, tensors)
        self._updater.scaler.load_state_dict(values["scaler"])
        shares = values["shares"]
        if not self.shares.fixed and len(shares["parts"]) == self._world.size:
            self.shares = Shares(tuple(shares["parts"]), tuple(shares["speeds"]))
        limits = values.get("tokens_at_once", ())  # checkpoints of earlier versions have none
        if len(limits) == self._world.size:
            self._room.limit(limits[self._world.rank.rank])

    def load_model(self, model: Mapping[str, Tensor], source: int = 0) -> None:
        if self._world.rank.rank == source:
            self.model.load_state_dict(model)
        self._world.send_tensors(self.model.state_dict(), source)

    def description(self) -> dict[str, Any]:
        return {"parts": list(self.shares.parts), "speeds": list(self.shares.speeds), "utilisation": list(self.shares.utilisation)}

    def _try(self, numbers: IntArray) -> None:
        """Forward and backward for the sake of the memory or the time they take."""
        with self._without_averaging():
            self._backward(numbers, 1.0)

    def close(self) -> None:
        # whoever lets go of the process group last waits for gloo's threads. DDP would wait holding Python's lock,
        # which such a thread needs to let go of its last tensors; the process group itself does not
        for name in ("logger", "reducer"):
            self._network.__dict__.pop(name, None)
        self._network = self.model

    def _gradients(self, mine: IntArray, dropout_seed: int, total_weight: float) -> None:
        """Forward and backward over this rank's share, in as many parts as memory asks for."""
        while True:
            torch.manual_seed(dropout_seed)
            parts = self._room.parts(mine)
            # averaging begins within the last backward and cannot be called back: only what comes before can be tried again
            free = parts if self._world.size == 1 else parts[:-1]
            counted = self._counted.clone(), self._rows_done, self._tokens_done
            if self._fit(free, total_weight):
                for part in parts[len(free) :]:
                    self._backward(part, total_weight)
                return
            self._room.halve(parts)
            self._counted, self._rows_done, self._tokens_done = counted
            self._updater.clear()

    def _fit(self, parts: list[IntArray], total_weight: float) -> bool:
        """Forward and backward without averaging; False where the device has no room for it."""
        try:
            with self._without_averaging():
                for part in parts:
                    self._backward(part, total_weight)
        except RuntimeError as error:
            if not tells_of_memory(error):
                raise
            return False
        return True

    def _backward(self, numbers: IntArray, total_weight: float) -> None:
        """Add the gradients of these rows, and their figures to those that are shown."""
        batch = make_batch(self._rows, numbers, total_weight)
        weights, targets = to_device(batch.weights, self._world.device), to_device(batch.targets, self._world.device)
        with autocast(self._world.device, self._config.dtype):
            outputs = self._network(*inputs_of(batch, self._world.device))  # (b, k)
            losses = row_losses(outputs, targets, self._task_type)  # (b,)
            loss = rank_loss(losses, weights, batch.total_weight, self._world.size)
        self._updater.scaler.scale(loss).backward()
        with torch.no_grad():
            correct = outputs.argmax(dim=1) == targets[:, 0]
            for place, values in enumerate((losses * weights, weights, correct)):
                self._counted[place] += values.sum()
        self._rows_done += len(batch)
        self._tokens_done += len(batch.tokens)

    def _look_at_speeds(self, step: int, clock: float, tokens: int) -> tuple[str, ...]:
        """New shares where the speeds ask for them, and sentences about it; the same on every rank."""
        if self._world.size == 1:
            return ()
        notes = []
        if (step + 1) % _MEASURE_EVERY == 0:
            before, self.shares = self.shares, self.shares.after(*self._pace.take())
            if self.shares.parts != before.parts:
                notes.append(pace.describe(self.shares, self._world.hosts))
        self._clocks.append(clock)
        if len(self._clocks) == _ADVISE_AFTER:
            seconds = (clock - self._clocks[1]) / (_ADVISE_AFTER - 2)
            found = pace.advice(self.shares.speeds, self._world.node_ranks, self._world.hosts, tokens, seconds)
            notes += [found] if found else []
        return tuple(notes)

    def _time_ranks(self, numbers: IntArray) -> tuple[list[float], list[float]]:
        """Seconds and tokens of each rank for the same rows, as many as an equal share has; the quicker of two rounds after a first."""
        rows = numbers[: -(-len(numbers) // self._world.size)]
        rounds = []
        for _ in range(3):
            self._world.gather(None)  # all begin together, as in a step
            began = time.perf_counter()
            for part in self._room.parts(rows):
                self._try(part)
            self._counted.sum().item()  # waits for the device
            rounds.append(time.perf_counter() - began)
        return self._world.gather(min(rounds[1:])), [self._room.tokens(rows)] * self._world.size

    def _averaging(self) -> DistributedDataParallel:
        # no device_ids: with them DDP would move the starts of rows to the GPU, and reading them there would wait for it
        network = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **_KEEP_BUFFERS)
        network.register_comm_hook(self._watch, lambda watch, bucket: _average(watch, bucket))
        return network

    def _without_averaging(self) -> AbstractContextManager[Any]:
        return self._network.no_sync() if isinstance(self._network, DistributedDataParallel) else nullcontext()

    def _return_freed(self) -> None:
        if self._world.device.type == "cpu":
            memory.return_freed()

    def _forget(self) -> None:
        """The gradients and figures of rows that were computed for another reason than to learn from them."""
        self._updater.clear()
        self._counted.zero_()
        self._rows_done = self._tokens_done = 0


def _average(watch: Stopwatch, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does by itself, noting when the last gradients were there: what follows is waiting for other ranks."""
    if bucket.is_last():
        watch.stop()
    return allreduce_hook(None, bucket)


def _refuse_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise BadModel(
                f"The model has batch normalisation ({name}), whose result depends on how a batch is divided over ranks: "
                "the fleet would change the model. Name a model with layer normalisation, as all BERTs have."
            )
