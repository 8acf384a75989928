"""How torch and transformers are loaded."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from bert_train_parallel.training.imports import libraries


class _Ring:
    def __init__(self) -> None:
        self.itself = self


def test_the_collector_leaves_libraries_alone_and_still_finds_what_a_run_drops() -> None:
    with libraries():
        assert gc.isenabled()
        assert gc.get_freeze_count() > 100_000
        dropped = weakref.ref(_Ring())
        gc.collect()
        assert dropped() is None
    assert gc.get_freeze_count() == 0


def test_a_caller_that_has_switched_the_collector_off_finds_it_off() -> None:
    gc.disable()
    try:
        with libraries():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_training_command_does_not_load_packages_that_it_never_needs() -> None:
    code = (
        "import sys; from bert_train_parallel.training.imports import leave_out_unused, libraries; leave_out_unused()\n"
        "with libraries(): from transformers import BertForSequenceClassification\n"
        "print(*[name for name, module in sys.modules.items() if module and name in ('scipy', 'accelerate', 'sklearn', 'torchvision')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
