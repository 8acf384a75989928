#!/usr/bin/env python3
"""Start this machine's share of a training run: one process per GPU, on one node or many."""

import sys

from bert_train_parallel.launching.cli import main

if __name__ == "__main__":
    sys.exit(main())
