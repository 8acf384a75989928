"""The report's folder: charts as PNG and SVG, and one page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from bert_train_parallel.analysis.compare import Comparison, tables_of_comparison
from bert_train_parallel.analysis.contents import FIGURES, tables_of
from bert_train_parallel.analysis.drawing import Chart, draw_charts, draw_comparison
from bert_train_parallel.analysis.report import Analysis
from bert_train_parallel.analysis.tables import Table, shorten, visible
from bert_train_parallel.metrics import figure_words
from bert_train_parallel.run_files import folder_written_aside

MOST_CLASSES = 25  # of a matrix that still reads as a table; the chart shows more
MOST_ROWS_FIRST = 40  # of a table that stands before the charts
LONGEST_CELL = 600

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; }
.cards div { border: 1px solid #e2e8f0; border-radius: .5rem; padding: .5rem 1rem; min-width: 7rem; }
.cards b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .cards small, .note { color: #4a5568; }
.wide { overflow-x: auto; }
.charts { display: flex; flex-wrap: wrap; gap: 0 2rem; } figure { margin: 0; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e8f0; vertical-align: top; }
th { font-weight: 600; } td.left, th.left { text-align: left; white-space: normal;
  min-width: 7rem; max-width: 34rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
img.large { max-width: none; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; }
  img, tr { break-inside: avoid; } img.large { max-width: 100%; } }
"""


def write_report(analysis: Analysis, folder: Path | None = None, has_charts: bool = True) -> Analysis:
    """Draw all charts and write the page, into the run's report folder or another; complete or not at all.

    Args:
        has_charts: False for a page of figures alone, which takes milliseconds.

    Raises:
        MissingPackage: matplotlib is not installed.
        NotWritable: the folder is read-only or the disk is full.
    """
    charts = draw_charts(analysis) if has_charts else []
    tables = tables_of(analysis, MOST_CLASSES)
    # the run, its labels and its figures come first, what takes more reading after the charts
    first = [table for table in tables[:3] if len(table.rows) <= MOST_ROWS_FIRST]
    then = [table for table in tables if table not in first]
    page = page_of(f"Report of {analysis.name}", [_cards(analysis), *map(_table, first), pictures(charts), *map(_table, then)])
    return replace(analysis, report=write_page(folder or analysis.files.report, charts, page))


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """The page of several runs side by side, and its charts; raises as `write_report` does."""
    charts = draw_comparison(comparison)
    names = ", ".join(run.name for run in comparison.runs)
    parts = [*map(_table, tables_of_comparison(comparison)), pictures(charts)]
    return write_page(folder, charts, page_of(f"Comparison of {names}", parts))


def write_page(folder: Path, charts: Sequence[Chart], page: str) -> Path:
    with folder_written_aside(folder) as aside:
        for chart in charts:
            (aside / f"{chart.name}.png").write_bytes(chart.png)
            (aside / f"{chart.name}.svg").write_bytes(chart.svg)
        (aside / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def page_of(title: str, parts: Sequence[str]) -> str:
    """A page as HTML that may neither load nor run anything."""
    # the policy keeps a page that is passed on from ever loading or running anything
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{html_words(title)}</title><style>{_STYLE}</style>'
    )
    body = "\n".join([f"<h1>{html_words(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _cards(analysis: Analysis) -> str:
    """The few figures that a reader looks for first."""
    figures = analysis.figures.get("test", {})
    shown = ("pearson", "spearman", "mse") if analysis.task_type == "regression" else ("accuracy", "macro_f1", "mcc")
    cards = []
    for name in (*shown, "samples"):
        value = figures.get(name)
        if not isinstance(value, int | float):
            continue
        bounds = figures.get("accuracy_interval") if name == "accuracy" else None
        small = f"95 %: {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "of the test split" if name == "samples" else ""
        number = f"{value:,}" if isinstance(value, int) else figure_words(value)
        cards.append(f"<div>{html_words(FIGURES[name])}<b>{number}</b><small>{small}</small></div>")
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="left"' if table.is_left(number) else "" for number in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html_words(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = f"<thead><tr>{line(table.columns, 'th')}</tr></thead>" if any(table.columns) else ""
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="note">{html_words(table.note)}</p>' if table.note else ""
    return f'<h2>{html_words(table.title)}</h2><div class="wide"><table>{head}<tbody>{body}</tbody></table></div>{note}'


def pictures(charts: Sequence[Chart]) -> str:
    """All charts, side by side where the page is wide enough."""
    return f'<div class="charts">{"".join(map(_picture, charts))}</div>'


def _picture(chart: Chart) -> str:
    data = base64.b64encode(chart.svg).decode()
    title = html_words(chart.title)
    # names beside a large matrix can be read at its own size only: it is scrolled, not shrunk
    kind = ' class="large"' if chart.width > 15 else ""
    return f'<figure><h2>{title}</h2><div class="wide"><img{kind} alt="{title}" src="data:image/svg+xml;base64,{data}"></div></figure>'


def html_words(text: str) -> str:
    return escape(shorten(visible(text), LONGEST_CELL))
