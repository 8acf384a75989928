#!/usr/bin/env python3
"""The figures of results.jsonl as Markdown: for each bench, settings and sides measured, the latest run.

scripts/bench/table.py                           # all benches
scripts/bench/table.py training preparation      # these
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from common import RESULTS

Figures = dict[str, Any]


def latest(lines: Iterable[str]) -> list[Figures]:
    """The last run of each bench and settings, in the order in which they first came."""
    runs = (json.loads(line) for line in lines if line.strip())
    return list({(run["bench"], run["machine"], json.dumps(settings(run["figures"]), sort_keys=True)): run for run in runs}.values())


def settings(figures: Figures) -> Figures:
    """What tells a run from another of its bench: what it was asked for, but how often, and the sides that it measured.

    >>> settings({"rows": 9, "rounds": 3, "ratio": 2.0, "ours": {"s": 1.0}})
    {'rows': 9, 'sides': ['ours', 'ratio', 'rounds', 'rows']}
    """
    asked = figures.get("asked", {name: value for name, value in figures.items() if isinstance(value, str | int)})
    tabled = [row for value in figures.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    sides = sorted({*figures, *(str(row["launcher"]) for row in tabled if "launcher" in row)})
    return {name: value for name, value in asked.items() if name != "rounds"} | {"sides": sides}


def tables(figures: Figures, title: str = "") -> Iterable[tuple[str, list[Figures]]]:
    """Title and rows of each table in the figures: values of several names, or lists of them; plain values make the first one.

    >>> list(tables({"ratio": 2.0, "ours": {"s": 1.0}, "peer": {"s": 2.0}}))
    [('', [{'ratio': 2.0}]), ('', [{'': 'ours', 's': 1.0}, {'': 'peer', 's': 2.0}])]
    """
    plain = {name: value for name, value in figures.items() if not is_table(value)}
    rows = {name: value for name, value in figures.items() if isinstance(value, dict) and not any(map(is_table, value.values()))}
    if plain:
        yield title, [plain]
    if rows:
        yield title, [{"": name, **value} for name, value in rows.items()]
    for name, value in figures.items():
        if isinstance(value, dict) and name not in rows:
            yield from tables(value, name)
        elif is_table(value) and isinstance(value, list):
            yield name, value


def is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value))


def cell(value: object) -> str:
    """A value as it stands in a table; bars would end the cell.

    >>> cell(0.123456), cell(1234.5), cell(None), cell("a|b"), cell([0.5, 1])
    ('0.1235', '1,234', '', 'a\\\\|b', '0.5, 1')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown(rows: list[Figures]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="*", help="names of benches; all when left out")
    asked = parser.parse_args().bench
    found = [run for run in latest(RESULTS.read_text(encoding="utf-8").splitlines()) if not asked or run["bench"] in asked]
    if not found:
        sys.exit(f"{RESULTS} has no run of {', '.join(asked) or 'any bench'}.")
    for run in found:
        print(f"### {run['bench']}, {run['date']}, {run['machine']}\n")
        for title, rows in tables(run["figures"]):
            print(f"{title}\n\n" if title else "", markdown(rows), "\n", sep="")
        print(", ".join(f"{package} {version}" for package, version in run["versions"].items()), "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
