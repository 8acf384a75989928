"""The peer: one fine-tuning by Hugging Face Trainer, as its users write it. Prints one JSON line of figures.

Settings: `pad` pads every text to the sequence length, as run_classification does by default; `dynamic` pads
each batch to its longest text; `grouped` adds group_by_length.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time

STARTED = time.time()


def read_csv(path: str) -> tuple[list[str], list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--model", required=True, help="a local model folder")
    parser.add_argument("--setting", choices=["pad", "dynamic", "grouped"], required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--sequence_len", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no_test", action="store_true", help="time the training alone")
    args = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    import torch
    import transformers
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    names = sorted(set(read_csv(args.train)[1]))

    def data_set(path: str, cap: int | None) -> Dataset:
        texts, labels = read_csv(path)
        made = Dataset.from_dict({"text": texts[:cap], "label": [names.index(label) for label in labels[:cap]]})
        padding = "max_length" if args.setting == "pad" else False
        return made.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=args.sequence_len, padding=padding), batched=True)

    step_ends: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            step_ends.append(time.time() - STARTED)

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder,
            num_train_epochs=args.epochs,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            seed=args.seed,
            bf16=args.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused where there is no GPU
            train_sampling_strategy="group_by_length" if args.setting == "grouped" else "random",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        transformers.set_seed(args.seed)
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names)),
            args=options,
            train_dataset=data_set(args.train, args.max_train_samples),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Clock()],
        )
        metrics = trainer.train().metrics
        steps = len(step_ends)
        figures = {
            # from the end of the first step on, as the other side is measured; its own clock beside it
            "samples_per_s": (steps - 1) * args.batch_size / (step_ends[-1] - step_ends[0]) if steps > 1 else None,
            "own_samples_per_s": metrics["train_samples_per_second"],
            "loss": metrics["train_loss"],
            "first_step_s": step_ends[0],
        }
        if not args.no_test:
            found = trainer.predict(data_set(args.test, None))
            figures["accuracy"] = float((np.argmax(found.predictions, axis=1) == found.label_ids).mean())
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
