"""`python -m bert_train_parallel.sweeps`: the same as bert_sweep."""

import sys

from bert_train_parallel.sweeps.cli import main

if __name__ == "__main__":
    sys.exit(main())
