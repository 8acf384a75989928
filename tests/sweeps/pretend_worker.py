"""The command `bert_sweep` whose trials are launches of a trainer that only pretends to train."""

from __future__ import annotations

import sys
from pathlib import Path

from bert_train_parallel.sweeps import trial
from bert_train_parallel.sweeps.cli import main

if __name__ == "__main__":
    trial.TRAINER = (sys.executable, str(Path(__file__).with_name("pretend_trainer.py")))
    sys.exit(main())
