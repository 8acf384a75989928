"""What came out of runs: figures, charts, a page, comparisons. No torch; matplotlib only where charts are asked for."""

from __future__ import annotations

from bert_train_parallel.analysis.report import Analysis, Mistake, analyse

__all__ = ["Analysis", "Mistake", "analyse"]
