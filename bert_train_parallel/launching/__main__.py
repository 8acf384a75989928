"""`python -m bert_train_parallel.launching`: the same as launch.py."""

import sys

from bert_train_parallel.launching.cli import main

if __name__ == "__main__":
    sys.exit(main())
