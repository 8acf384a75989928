"""Being asked to end: noted when it happens, acted upon where a run can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from bert_train_parallel.errors import StoppedBySignal

_ASKS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """While the block lasts, SIGTERM and Ctrl-C are only noted; a second one ends the process as it would without the block."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            self._earlier = {number: signal.signal(number, self._note) for number in _ASKS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._asked is not None

    def raise_if_asked(self) -> None:
        """Raises StoppedBySignal where no step is under way that others take part in."""
        if self._asked is not None:
            raise StoppedBySignal(self.sentence(), self.exit_code)

    @property
    def exit_code(self) -> int:
        return 128 + (self._asked or signal.SIGTERM)

    def sentence(self) -> str:
        return f"stopped by {signal.Signals(self._asked or signal.SIGTERM).name}; --resume goes on from the newest checkpoint."

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        signal.signal(number, self._earlier.get(number, signal.SIG_DFL))
