"""From a CSV of texts and labels to a fine-tuned BERT and its confusion matrix, on whatever GPUs the machines have.

>>> import bert_train_parallel
>>> sorted(set(dir(bert_train_parallel)) & {"train", "prepare", "load_model", "analyse"})
['analyse', 'load_model', 'prepare', 'train']
"""

from __future__ import annotations

TYPE_CHECKING = False  # true for type checkers, by its name; the module `typing` is not worth its time here
if TYPE_CHECKING:
    from bert_train_parallel.analysis.report import analyse
    from bert_train_parallel.predict.predictor import load_model
    from bert_train_parallel.training.api import prepare, train

__version__ = "1.0.0"
__all__ = ["__version__", "analyse", "load_model", "prepare", "train"]

# Where each function lives: it is imported when it is asked for, so that importing the package costs nothing.
_HOMES = {"train": "training.api", "prepare": "training.api", "load_model": "predict.predictor", "analyse": "analysis.report"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
