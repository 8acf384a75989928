"""Stands in for the trainer where a test is about launches: the same words and files, steps that only take time.

Its settings come by the environment: PRETEND_STEPS, PRETEND_STEP_S, PRETEND_END (nan, oom, usage, full, crash, kill, or nothing) and
PRETEND_DEAF, which makes it ignore SIGTERM.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from bert_train_parallel.errors import not_writable
from bert_train_parallel.progress import Event, append_event
from bert_train_parallel.run_files import RunFiles, write_json

ENDS = {"nan": 3, "oom": 4, "usage": 2, "full": 2, "crash": 1}


def main() -> int:
    source = Path(sys.argv[1])
    options = dict(zip(sys.argv[2:], sys.argv[3:], strict=False))
    if "--preponly" in sys.argv:
        place = Path(options["--output_dir"])
        (place / f"{source.stem}.sqlite").write_text("a store")
        return 0
    if os.environ.get("PRETEND_DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    files = RunFiles(source.parent, source.stem)
    steps, step_s = int(os.environ.get("PRETEND_STEPS", "4")), float(os.environ.get("PRETEND_STEP_S", "0"))
    end = os.environ.get("PRETEND_END", "")
    files.checkpoints.mkdir(exist_ok=True)
    saved = sorted(int(path.name) for path in files.checkpoints.iterdir())
    first = saved[-1] if saved else 0
    append_event(files.progress, Event("resume" if saved else "start", step=first, steps=steps, figures={"rows": 40}))
    for step in range(first + 1, steps + 1):
        time.sleep(step_s)
        append_event(files.progress, Event("step", step=step, steps=steps, epoch=1, figures={"loss": 1 / step}))
        (files.checkpoints / str(step)).touch()
        append_event(files.progress, Event("checkpoint", step=step, steps=steps, path=str(files.checkpoints / str(step))))
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end:
        words = str(not_writable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), source.parent)) if end == "full" else f"ended by {end}"
        failed = {"message": words, "extraInfo": {"py_callstack": "", "timestamp": "0"}, "exit_code": ENDS[end]}
        failed["kind"] = "usage" if end == "full" else end
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": failed}))
        return ENDS[end]
    settings = json.loads(Path(options["--config"]).read_text())
    figures = {"accuracy": 0.5 + settings["learning_rate"], "loss": 0.1}
    write_json(files.stats, {"Training": [{"Training Loss": 0.2}], "Testing": {}})
    result = {"figures": {"validate": figures, "test": figures}, "steps": steps, "seconds": 1.0, "task_type": "classification"}
    write_json(files.result, result | {"label_names": ["bad", "good"], "settings": settings})
    return 0


if __name__ == "__main__":
    sys.exit(main())
