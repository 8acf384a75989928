#!/usr/bin/env python3
"""Fine-tuning side by side with Hugging Face Trainer: speed, share of the machine's peak, accuracy, time to the first step, memory.

    scripts/bench/training.py                                  # the demo's tweets, MiniLM, fp32, three rounds
    scripts/bench/training.py --train train.tsv --test test.tsv --dtype bfloat16 --rounds 1

Each round, a seed of its own, runs both sides alternately in the same settings. Both are measured from the end of the first step
to the end of the last, evaluation left out; ours is the command as shipped. Peak memory is that of the whole command on the host.
Trainer runs in three settings: padding to the sequence length (the default of run_classification), to the longest text of a batch,
and with group_by_length. Where there are GPUs, both sides have one, the first that CUDA_VISIBLE_DEVICES leaves.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import asked_of, gpus, record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = {"Trainer, padded to 128": "pad", "Trainer, dynamic padding": "dynamic", "Trainer, group_by_length": "grouped"}
OURS = {"bert_train_parallel": [], "bert_train_parallel, --group_by_length": ["--group_by_length"]}


def as_csv(source: Path, target: Path) -> None:
    """A CSV with the columns text and label, or a tab-separated file of both without a header, as a CSV for both sides."""
    with open(source, encoding="utf-8", newline="") as file:
        if source.suffix == ".tsv":
            rows = [line.rstrip("\r\n").rsplit("\t", 1) for line in file]
        else:
            rows = [[row["text"], row["label"]] for row in csv.DictReader(file)]
    with open(target, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])


def demo_text(folder: Path) -> tuple[Path, Path]:
    """The demo's tweets, every fifth one to test on."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "demo_text.py"), str(folder / "all.csv")], check=True)
    with open(folder / "all.csv", encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    for name, chosen in (
        ("train.csv", [row for number, row in enumerate(rows) if number % 5]),
        ("test.csv", rows[::5]),
    ):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *chosen])
    return folder / "train.csv", folder / "test.csv"


def measured(command: list[str], folder: Path) -> tuple[float, str]:
    """Run a command; its peak memory in MB, the largest of its processes, and what it printed."""
    with open(folder / "output", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return usage.ru_maxrss / 1024, text


def run_peer(setting: str, args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "peer_trainer.py"), "train.csv", "test.csv", "--model", args.model_folder, "--setting", setting]
    command += ["--epochs", str(args.epochs), "--batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate)]
    command += ["--seed", str(seed), "--dtype", args.dtype]
    command += ["--max_train_samples", str(args.max_train_samples)] if args.max_train_samples else []
    command += ["--max_steps", str(args.max_steps)] if args.max_steps else []
    command += ["--no_test"] if args.no_test else []
    peak, printed = measured(command, folder)
    return dict(json.loads(printed.strip().splitlines()[-1])) | {"peak_mb": round(peak)}


def run_ours(flags: list[str], args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    name = f"s{seed}{''.join(flag.strip('-')[:5] for flag in flags)}-{time.monotonic_ns()}"
    command = [sys.executable, str(ROOT / "launch.py"), "bert_train_parallel.py", "train.csv", "--test_file", "test.csv"]
    command += ["--validation_file", "validate.csv", "--model", args.model, "--epochs", str(args.epochs), "--long_texts", "truncate"]
    command += ["--batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate), "--dtype", args.dtype]
    command += ["--seed", str(seed), "--run", name, "--no_export", *flags]
    command += ["--max_train_samples", str(args.max_train_samples)] if args.max_train_samples else []
    command += ["--max_steps", str(args.max_steps)] if args.max_steps else []
    started = time.time()
    peak, _ = measured(command, folder)
    events = [json.loads(line) for line in (folder / f"train-{name}_progress.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["kind"] == "step"]
    result = json.loads((folder / f"train-{name}_RESULT.json").read_text())
    # of the steps alone: what lies between two epochs is validation
    within = [(earlier, later) for earlier, later in itertools.pairwise(steps) if later["epoch"] == earlier["epoch"]]
    seconds = sum(later["time"] - earlier["time"] for earlier, later in within)
    rows = sum(later["step"] - earlier["step"] for earlier, later in within)
    of_all = steps[-1]["figures"]
    return {
        "samples_per_s": rows * args.batch_size / seconds,
        "tokens_per_sample": of_all["tokens_per_s"] / of_all["rows_per_s"],
        "first_step_s": steps[0]["time"] - started,
        "peak_mb": round(peak),
        "accuracy": result["figures"]["test"]["accuracy"],
        "matmul": result["world"].get("matmul"),
    }


def add_shares_of_peak(figures: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Real tokens a second of each side, and the share of the peak of matrix products that all linear layers over these tokens would take.

    Ours leaves out most of the last layer, which counts here. The peak is what the model's largest products reach alone on this
    device, in this precision, by the library that ours took, with the tokens of a batch.
    """
    import torch

    from bert_train_parallel.models.loading import build_model
    from bert_train_parallel.models.matmul import use_matmul
    from bert_train_parallel.training.profiling import measured_peak

    model = build_model(args.model, 2, "classification", ["0", "1"], seed=0).to("cuda" if torch.cuda.is_available() else "cpu")
    library = figures["bert_train_parallel"]["matmul"]
    use_matmul(model, library)
    tokens = figures["bert_train_parallel"]["tokens_per_sample"]
    peak = measured_peak(model, round(args.batch_size * tokens), args.dtype)
    encoder = model.network.base_model.encoder
    operations = sum(6 * layer.in_features * layer.out_features for layer in encoder.modules() if isinstance(layer, torch.nn.Linear))
    for row in figures.values():
        row["tokens_per_s"] = round(row["samples_per_s"] * tokens)
        row["share_of_peak"] = round(row["tokens_per_s"] * operations / peak, 3)
    of_library = f", ours by {library}" if args.dtype == "float32" and not torch.cuda.is_available() else ""
    print(f"\npeak of matrix products in {args.dtype}{of_library}: {peak / 1e12:.2f} TFLOP/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, help="CSV with text and label, or a .tsv of both without a header; the demo's tweets when left out"
    )
    parser.add_argument("--test", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_steps", type=int)
    parser.add_argument("--no_test", action="store_true", help="leave the accuracy of Trainer out")
    parser.add_argument("--rounds", type=int, default=3, help="seeds, one after the other")
    parser.add_argument("--only", nargs="*", choices=["pad", "dynamic", "grouped"], help="Trainer's settings to run; all when left out")
    args = parser.parse_args()
    asked = asked_of(args)

    if gpus():  # of several, ours would take all, and Trainer would multiply its batch by their number
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    sys.path.insert(0, str(ROOT))
    from bert_train_parallel.model_names import locate_model

    args.model_folder = str(locate_model(args.model))
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.train:
            as_csv(args.train, folder / "train.csv")
            as_csv(args.test or args.train, folder / "test.csv")
        else:
            demo_text(folder)
        lines = (folder / "test.csv").read_text(encoding="utf-8")
        (folder / "validate.csv").write_text(lines, encoding="utf-8")
        for seed in range(args.rounds):
            for name, setting in PEERS.items():
                if args.only is None or setting in args.only:
                    found.setdefault(name, []).append(run_peer(setting, args, seed, folder))
                    print(f"seed {seed}  {name:38} {found[name][-1]}", flush=True)
            for name, flags in OURS.items():
                found.setdefault(name, []).append(run_ours(flags, args, seed, folder))
                print(f"seed {seed}  {name:38} {found[name][-1]}", flush=True)

    figures = {}
    for name, rounds in found.items():
        numbers = {key for key, value in rounds[0].items() if isinstance(value, int | float)}
        figures[name] = {key: statistics.median(one[key] for one in rounds) for key in sorted(numbers)}
        if "matmul" in rounds[0]:
            figures[name]["matmul"] = statistics.mode(one["matmul"] for one in rounds)
        if "accuracy" in numbers:
            figures[name]["accuracies"] = [round(one["accuracy"], 4) for one in rounds]
    add_shares_of_peak(figures, args)
    ours = figures["bert_train_parallel"]["samples_per_s"]
    print(f"{'':38} samples/s  ours/this  tokens/s  of peak  first step s  peak MB  test accuracy, by seed")
    for name, row in figures.items():
        speed = f"{row['samples_per_s']:9.1f}  {ours / row['samples_per_s']:8.2f}x  {row['tokens_per_s']:8}  {row['share_of_peak']:7.0%}"
        print(f"{name:38} {speed}  {row['first_step_s']:12.1f}  {row['peak_mb']:7.0f}  {row.get('accuracies', '')}")
    record("training", {"asked": asked, "median": figures, "rounds": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
