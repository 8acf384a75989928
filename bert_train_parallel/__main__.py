"""`python -m bert_train_parallel` is the command `bert_train_parallel`."""

import sys

from bert_train_parallel.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
