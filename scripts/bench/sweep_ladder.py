#!/usr/bin/env python3
"""A ladder against random trials that together see as many rows: test accuracy of both winners, which validation chose.

    scripts/bench/sweep_ladder.py                                     # the demo's tweets, MiniLM, five seeds
    scripts/bench/sweep_ladder.py --train train.tsv --test test.tsv --seeds 3

Each seed is one sweep by the command as shipped, with `compare` in its file.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import asked_of, record
from training import as_csv, demo_text

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "batch_size": [16, 32],
    "schedule": ["linear", "constant"],
    "warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": "linear"}},
}

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 0.975 quantile for 1 to 9 degrees of freedom


def sweep_of(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A ladder of two rungs: many trials of one epoch with a quarter of the rows, the best of them and a new one with two of all."""
    tuned = {"model_name": args.model, "dataset_name": "train.csv", "test_file": "test.csv", "max_seq_length": args.sequence_len}
    tuned |= {"seed": seed, "max_eval_samples": args.max_eval_samples}
    rungs = [
        {"epochs": 1, "max_train_samples": args.max_train_samples // 4, "keep": max(args.trials // 3, 1), "new": args.trials},
        {"epochs": 2, "max_train_samples": args.max_train_samples, "keep": 1, "new": 1},
    ]
    return {
        "experiment_id": f"ladder-{seed}",
        "base": {"fine_tune_config": {name: value for name, value in tuned.items() if value is not None}},
        "space": SPACE,
        "num_trials": args.trials,
        "max_concurrency": args.concurrency,
        "seed": seed,
        "metric": "accuracy",
        "ladder": {"stages": rungs},
        "compare": True,
    }


def run(seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = folder / f"ladder-{seed}.json"
    path.write_text(json.dumps(sweep_of(seed, args)), encoding="utf-8")
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "bert_train_parallel.sweeps", "run", path.name, "--output_dir", "sweeps"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = json.loads((folder / "sweeps" / f"ladder-{seed}" / "RESULT.json").read_text(encoding="utf-8"))["result"]["comparison"]
    return {
        "seed": seed,
        "ladder": shown(found["winner_figures"]),
        "ladder_rows": found["rows_seen"],
        "random": shown(found["random_figures"]),
        "random_trials": found["random_trials"],
        "random_rows": found["random_rows_seen"],
        "seconds": round(time.monotonic() - began),
    }


def shown(figures: dict[str, float]) -> list[float]:
    """Accuracy with the ends of its 95 % interval."""
    return [round(figures[name], 4) for name in ("accuracy", "accuracy_interval_low", "accuracy_interval_high")]


def mean_and_half_width(values: list[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval by Student's t; NaN of one value, or of more than the table has.

    >>> [round(found, 3) for found in mean_and_half_width([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    mean, count = statistics.mean(values), len(values)
    if not 2 <= count <= len(STUDENT) + 1:
        return mean, math.nan
    return mean, STUDENT[count - 2] * statistics.stdev(values) / math.sqrt(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, help="CSV with text and label, or a .tsv of both without a header; the demo's tweets when left out"
    )
    parser.add_argument("--test", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sequence_len", type=int, default=64)
    parser.add_argument("--max_train_samples", type=int, default=2000, help="rows of the last rung, and of each random trial")
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--trials", type=int, default=8, help="on the first rung")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    if args.train and not args.test:
        parser.error("--train needs --test: the figures are of samples that no trial has seen")
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.train:
            as_csv(args.train, folder / "train.csv")
            as_csv(args.test, folder / "test.csv")
        else:
            demo_text(folder)
        for seed in range(args.seeds):
            rounds.append(run(seed, args, folder))
            print(rounds[-1], flush=True)
    figures: dict[str, Any] = {"asked": asked_of(args), "seeds": rounds}
    for name in ("ladder", "random"):
        figures[name] = mean_and_half_width([one[name][0] for one in rounds])
    figures["difference"] = mean_and_half_width([one["ladder"][0] - one["random"][0] for one in rounds])
    for name in ("ladder", "random", "difference"):
        print(f"{name:10} {figures[name][0]:.4f} ± {figures[name][1]:.4f}  (mean over {len(rounds)} seeds, 95 %)")
    record("sweep_ladder", figures)


if __name__ == "__main__":
    main()
