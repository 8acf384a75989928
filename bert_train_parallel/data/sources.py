"""Where samples come from: files of tables or JSON lines, and data sets, read one sample after the other."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_train_parallel.config import DataConfig
from bert_train_parallel.errors import BadSource


class Sample(NamedTuple):
    """One text, or two, and its label, as the source has them."""

    line: int  # the first line of its record in the file, counted from 1
    text: str
    pair: str | None
    label: str


class Source:
    def __init__(self, config: DataConfig, name: str) -> None:
        self.config, self.name = config, name
        self.read_as: dict[str, Any] = {}

    def samples(self) -> Iterator[Sample]:
        if not Path(self.name).is_file():
            raise BadSource(f"{self.name}: there is no such file.")
        with open(self.name, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader)
            text, label = header.index(self.config.text or "text"), header.index(self.config.label or "label")
            line = reader.line_num + 1
            for row in reader:
                yield Sample(line, row[text], None, row[label])
                line = reader.line_num + 1
