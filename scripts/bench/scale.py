#!/usr/bin/env python3
"""What a step costs beside the model, and the memory of a rank, where there is much of something: rows, classes, text, ranks.

    scripts/bench/scale.py              # moderate sizes, a minute
    scripts/bench/scale.py --full       # 10 million rows, 100 documents of 100,000 tokens: a quarter of an hour, 3 GB of disk

Each case is built into a store and then read in a fresh process as one rank of a world: choosing the rows of a global batch,
cutting it into shares, packing the rank's own. No model is involved, and of the world's ranks there is one. The base case is
small in everything; no other may cost more for a step, except for what its batch has more of.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import record
from preparation import proportional_memory, write_texts

HERE = Path(__file__).resolve().parent
PREPARE = """
import sys
from bert_train_parallel.config import DataConfig
from bert_train_parallel.data.preparation import prepare
prepare(DataConfig(model="minilm"), sys.argv[1]).close()
"""
READ = "import json, scale, sys; print(json.dumps(scale.read_as_rank(sys.argv[1], *map(int, sys.argv[2:]))))"
STEPS = 300


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    texts: int
    words: int  # of a text, the median where `spread` is above 0
    spread: float = 0.8
    classes: int = 3
    ranks: int = 1
    batch_size: int = 32


def cases(rows: int, documents: int) -> list[Case]:
    base = Case("base", texts=10_000, words=6)
    return [
        base,
        dataclasses.replace(base, name="rows", texts=rows),
        dataclasses.replace(base, name="classes", texts=50_000, classes=1_000),
        dataclasses.replace(base, name="long documents", texts=documents, words=66_500, spread=0.0, classes=2),
        dataclasses.replace(base, name="batch of 64 ranks in one", batch_size=64 * base.batch_size),
        dataclasses.replace(base, name="64 ranks", ranks=64, batch_size=64 * base.batch_size),
    ]


def built(case: Case, folder: Path) -> dict[str, float]:
    """Make the case's texts and their store; the time and the memory that the store took."""
    source = folder / "texts.csv"
    labels = [f"class {number}" for number in range(case.classes)]
    write_texts(source, case.texts, words_e=math.log(case.words), spread=case.spread, labels=labels)
    began, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(source)], stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, proportional_memory(process.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{case.name}: the store was not built (exit code {process.returncode})")
    source.unlink()
    return {"build_s": time.monotonic() - began, "build_peak_mb": peak / 1e6}


def read(case: Case, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-c", READ, str(folder / "texts.sqlite"), str(case.ranks), str(case.batch_size)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(HERE)}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def read_as_rank(store_path: str, ranks: int, batch_size: int) -> dict[str, float]:
    """Do what a rank does in each step with its rows, up to the model; each step as another rank of the world."""
    from bert_train_parallel.config import TrainConfig
    from bert_train_parallel.data.batches import make_batch
    from bert_train_parallel.data.store import Store
    from bert_train_parallel.training.course import Course
    from bert_train_parallel.training.samples import training_rows
    from bert_train_parallel.training.shares import Shares, micro_batches

    config = TrainConfig(model="minilm", batch_size=batch_size)
    clock = [time.perf_counter()]
    store = Store.open(store_path)
    clock.append(time.perf_counter())
    rows = training_rows(store, config)
    clock.append(time.perf_counter())
    shares = Shares.equal(ranks)

    def milliseconds(course: Course) -> list[tuple[float, ...]]:
        """For choosing, cutting and packing, of each step; the same calls as in DataParallel.step."""
        found = []
        for step in range(STEPS):
            times = [time.perf_counter()]
            numbers = course.batch(step)
            times.append(time.perf_counter())
            lengths = rows.offsets[numbers + 1] - rows.offsets[numbers]
            share = shares.cut(lengths)[step % ranks]
            mine = numbers[share][np.argsort(lengths[share], kind="stable")]
            total_weight = float(rows.weights[numbers].sum())
            parts = micro_batches(rows.offsets[mine + 1] - rows.offsets[mine], None, None)
            times.append(time.perf_counter())
            for part in parts:
                make_batch(rows, mine[part], total_weight)
            times.append(time.perf_counter())
            found.append(tuple(1000 * (after - earlier) for earlier, after in itertools.pairwise(times)))
        return found

    choose, cut, pack = (statistics.median(column) for column in zip(*milliseconds(Course(rows, config)), strict=True))
    grouped = milliseconds(Course(rows, config.model_copy(update={"group_by_length": True})))
    return {
        "rows": len(rows),
        "tokens": int(rows.offsets[-1]),
        "open_s": clock[1] - clock[0],
        "read_rows_s": clock[2] - clock[1],
        "choose_ms": choose,
        "cut_ms": cut,
        "pack_ms": pack,
        "step_ms": choose + cut + pack,
        "grouped_step_ms": statistics.median(map(sum, grouped)),
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """The greatest resident memory of this process so far; what is mapped of a file counts as far as it was read."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--documents", type=int, default=20, help="texts of 100,000 tokens")
    parser.add_argument("--full", action="store_true", help="10 million rows, 100 documents")
    args = parser.parse_args()
    rows, documents = (10_000_000, 100) if args.full else (args.rows, args.documents)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        stores: dict[tuple[object, ...], tuple[Path, dict[str, float]]] = {}
        for case in cases(rows, documents):
            content = (case.texts, case.words, case.spread, case.classes)
            if content not in stores:
                folder = Path(temporary) / str(len(stores))
                folder.mkdir()
                stores[content] = folder, built(case, folder)
            folder, building = stores[content]
            first = read(case, folder)  # where tokens are many, this writes the file that later ranks map
            figures = {"case": case.name, "ranks": case.ranks, "classes": case.classes, **building, **read(case, folder)}
            figures["first_read_rows_s"] = first["read_rows_s"]
            found.append(figures)
            print(f"{case.name:26}" + "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "case"), flush=True)
    record("scale", {"asked": {"rows": rows, "documents": documents}, "cases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
