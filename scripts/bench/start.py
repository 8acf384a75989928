#!/usr/bin/env python3
"""From command to the end of the first optimizer step, beside Hugging Face Trainer; and from command to the analysis of a run.

    scripts/bench/start.py --source train.tsv                           # a CSV, or a .tsv of text and label without a header
    scripts/bench/start.py --rows 1000000 --rounds 1 --only dynamic     # made-up texts, as in preparation.py

Each round runs all sides by turns: ours without a store, so that the CSV is read and tokenised; ours again, with the store of
the first; Trainer, which reads the CSV and tokenises it with `datasets.map`, in two of its settings. The clock of ours begins
before the launcher; Trainer's at the first line of its script, some hundredths of a second later.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import record
from preparation import write_texts
from training import HERE, ROOT, as_csv, measured

PEERS = {"Trainer, dynamic padding": "dynamic", "Trainer, padded to 128": "pad"}
COLD, WARM = "ours, first start", "ours, later start"
PLAIN, CHARTS = "bert_result_analysis", "bert_result_analysis --charts"
FOUND_IN = "texts.csv"
EVALUATED = 1_000  # samples at most that ours validates and tests on after its first step, for the analysis to have something to show


def ours(folder: Path, place: Path, name: str) -> dict[str, float]:
    """Start a run whose store is in `place`, or will be."""
    command = [sys.executable, str(ROOT / "launch.py"), "bert_train_parallel.py", FOUND_IN, "--model", "minilm", "--max_steps", "1"]
    command += ["--max_eval_samples", str(EVALUATED), "--long_texts", "truncate", "--output_dir", str(place), "--run", name]
    started = time.time()
    peak, _ = measured(command, folder)
    events = map(json.loads, (place / f"texts-{name}_progress.jsonl").read_text(encoding="utf-8").splitlines())
    return {"first_step_s": next(event["time"] for event in events if event["kind"] == "step") - started, "peak_mb": peak}


def peer(folder: Path, model: Path, setting: str) -> dict[str, float]:
    command = [sys.executable, str(HERE / "peer_trainer.py"), FOUND_IN, FOUND_IN, "--model", str(model), "--setting", setting]
    found = json.loads(measured([*command, "--max_steps", "1", "--no_test"], folder)[1].strip().splitlines()[-1])
    return {"first_step_s": found["first_step_s"], "peak_mb": found["peak_mb"]}


def analysed(folder: Path, result: Path, flags: list[str]) -> dict[str, float]:
    began = time.monotonic()
    peak, _ = measured([sys.executable, "-m", "bert_train_parallel.analysis.cli", str(result), *flags], folder)
    return {"answered_s": time.monotonic() - began, "peak_mb": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="texts to start on; made-up ones when left out")
    parser.add_argument("--rows", type=int, default=20_000, help="how many texts to make up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(PEERS.values()), help="Trainer's settings to run; all when left out")
    args = parser.parse_args()

    from bert_train_parallel.model_names import locate_model

    model = Path(locate_model("minilm"))
    peers = {name: setting for name, setting in PEERS.items() if args.only is None or setting in args.only}
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.source:
            as_csv(args.source, folder / FOUND_IN)
        else:
            write_texts(folder / FOUND_IN, args.rows)
        for number in range(args.rounds):
            place = folder / f"round{number}"
            result = place / "texts-later_RESULT.json"
            sides = {
                COLD: partial(ours, folder, place, "first"),
                WARM: partial(ours, folder, place, "later"),
                PLAIN: partial(analysed, folder, result, []),
                CHARTS: partial(analysed, folder, result, ["--charts"]),
                **{name: partial(peer, folder, model, setting) for name, setting in peers.items()},
            }
            for name, run in sides.items():
                found.setdefault(name, []).append(run())
                print(f"round {number + 1}  {name:30} {found[name][-1]}", flush=True)

    medians = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    for name in (*peers, COLD):
        medians[name]["over_later_start"] = medians[name]["first_step_s"] / medians[WARM]["first_step_s"]
    print()
    for name, row in medians.items():
        print(f"{name:30} " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    asked = {"source": args.source.name} if args.source else {"rows": args.rows}
    record("start", {"asked": {**asked, "rounds": args.rounds}, "sides": medians})
    return 0


if __name__ == "__main__":
    sys.exit(main())
