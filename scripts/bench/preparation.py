#!/usr/bin/env python3
"""From a CSV to tokens on disk, side by side with `datasets.map` in two processes: seconds, CPU-seconds, peak memory.

    scripts/bench/preparation.py                     # 200,000 rows, three rounds
    scripts/bench/preparation.py --rows 1000000 --rounds 1 --ours_only

The texts are made up: their lengths as tweets and short reviews have them (median 24 tokens, 95 % below 90), their words by
Zipf's law, one in 25 a name or an address that comes once. Both sides write what training needs: we the store, the peer a
data set on disk with the columns input_ids and label. Memory is the proportional set size of all processes of a side, in sum.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from common import record

OURS = """
import sys
from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
prepare(DataConfig(model="minilm"), sys.argv[1], sys.argv[2]).close()
"""
PEER = """
import sys
import datasets
from transformers import AutoTokenizer
from bert_train_parallel.model_names import locate_model
tokenizer = AutoTokenizer.from_pretrained(locate_model("minilm"))
rows = datasets.load_dataset("csv", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
def encoded(batch):
    return tokenizer(batch["text"], truncation=True, max_length=128)
tokens = rows.map(encoded, batched=True, num_proc=2, remove_columns=["text"])
tokens.train_test_split(0.1, seed=0).save_to_disk(sys.argv[2] + "/tokens")
"""


def write_texts(
    path: Path,
    rows: int,
    seed: int = 0,
    words_e: float = 2.6,
    spread: float = 0.8,
    labels: Sequence[str] = ("left", "right", "neutral"),
) -> None:
    """Texts with labels whose lengths and words are spread as in real ones.

    Args:
        words_e, spread: mean and deviation of the natural logarithm of a text's words; about 1.3 tokens each.
    """
    from bert_train_parallel.data.hub_files import model_file
    from bert_train_parallel.model_names import locate_model

    rng = random.Random(seed)
    vocabulary = json.loads(Path(str(model_file(locate_model("minilm"), "tokenizer.json"))).read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    words += [first + second for first, second in zip(rng.choices(words, k=40_000), rng.choices(words, k=40_000), strict=True)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            length = max(1, round(rng.lognormvariate(words_e, spread)))
            text = rng.choices(words, cum_weights=weights, k=length)
            for place in range(length):
                if rng.random() < 0.04:
                    text[place] = f"@{rng.choice(words)}{rng.randrange(10**6)}"
            writer.writerow([" ".join(text).capitalize(), rng.choice(labels)])


def proportional_memory(group: int) -> int:
    """Bytes of memory of all processes of a process group, shared pages divided among them."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue
    return total


def measured(code: str, source: Path) -> dict[str, float]:
    """Run one side in a fresh process and folder."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        before, began, peak = os.times(), time.monotonic(), 0
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(source), folder], env=environ, start_new_session=True, stdout=subprocess.DEVNULL, cwd=folder
        )
        while process.poll() is None:
            peak = max(peak, proportional_memory(process.pid))
            time.sleep(0.2)
        after = os.times()
        if process.returncode:
            raise SystemExit(f"a side failed with exit code {process.returncode}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return {"seconds": time.monotonic() - began, "cpu_seconds": cpu, "peak_mb": peak / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours_only", action="store_true")
    arguments = parser.parse_args()
    sides = {"bert_train_parallel": OURS} | ({} if arguments.ours_only else {"datasets.map, 2 processes": PEER})
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.csv"
        write_texts(source, arguments.rows)
        for number in range(arguments.rounds):
            for side, code in sides.items():
                found[side].append(measured(code, source))
                print(f"round {number + 1}  {side}: " + "  ".join(f"{name} {value:.1f}" for name, value in found[side][-1].items()))
    medians = {side: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for side, runs in found.items()}
    figures: dict[str, object] = {"rows": arguments.rows, "rounds": arguments.rounds, **medians}
    if not arguments.ours_only:
        ours, peer = medians.values()
        figures["times_faster"] = peer["seconds"] / ours["seconds"]
        figures["times_less_cpu"] = peer["cpu_seconds"] / ours["cpu_seconds"]
    for name, value in figures.items():
        print(name, value)
    record("preparation", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
