"""Why a rank failed, left where the launcher looks for it: the sentence, or the traceback."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bert_train_parallel.errors import BertTrainParallelError
from bert_train_parallel.rank import Rank

_FIRST_SPEAKS_S = 1.5  # a node's first rank fails alike in most cases, and says it; the launcher then ends this one


def told_to_launcher(body: Callable[[], int]) -> int:
    """Run one rank; leave the reason of a failure where the launcher looks for it."""
    rank = Rank.from_environ()
    if rank.local_world_size > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin would take the cores of other ranks
    try:
        return body()
    except BertTrainParallelError as error:
        _write_failure(str(error), error.kind, error.exit_code, "")
        if not rank.is_first_of_node:
            sys.stdout.flush()
            time.sleep(_FIRST_SPEAKS_S)
        raise
    except Exception as error:
        _write_failure(f"{type(error).__name__}: {error}", "error", 1, traceback.format_exc())
        raise


def _write_failure(message: str, kind: str, exit_code: int, callstack: str) -> None:
    """In the format of torch's `@record`, with two fields of ours."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"py_callstack": callstack, "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra, "kind": kind, "exit_code": exit_code}}))
    except OSError:  # the launcher then tells it from the log
        pass
