"""AdamW as it is used for BERT: fused, no decay for biases and norms, clipped, with a scaler for float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bert_train_parallel.config import TrainConfig


class Updater:
    """Turns gradients into new parameters; nothing here waits for the device."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig, device: torch.device) -> None:
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},  # biases and norms
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self._parameters = list(parameters)
        self._clip_norm = config.clip_norm

    def update(self, learning_rate: float) -> None:
        """One step along the gradients, and the gradients cleared; left out where float16 has overflowed, on all ranks alike."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def bytes_to_come(self) -> int:
        """What the next step takes for the two moments of each parameter, where they are not there yet."""
        return sum(2 * parameter.nbytes for parameter in self._parameters if not self.optimizer.state.get(parameter))
