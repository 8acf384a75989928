"""`bert_result_analysis`: prints what came out of a run, draws it, and compares runs."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_train_parallel.analysis.compare import compare, tables_of_comparison
from bert_train_parallel.analysis.contents import runs_table, tables_of, widest_matrix
from bert_train_parallel.analysis.report import analyse_run
from bert_train_parallel.analysis.results import choose_run, find_runs
from bert_train_parallel.analysis.tables import Table, render
from bert_train_parallel.command_line import Parser
from bert_train_parallel.errors import BadSetting, run_command
from bert_train_parallel.run_files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Print what came out of a run: labels, figures, confusion matrix, mistakes; with --charts also a page."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode still shows the figures
    return run_command("bert_result_analysis", lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bert_result_analysis",
        description=main.__doc__,
        epilog="The other files of the run are found by their names. Several FILEs are compared with the first one.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="any file of a run, the store, or a folder of runs")
    parser.add_argument("-c", "--charts", action="store_true", help="also draw charts (PNG, SVG) and one HTML page, into <stem>_report/")
    parser.add_argument("-l", "--logfile", type=Path, metavar="FILE", help="also write what is printed to this file")
    parser.add_argument("--run", metavar="NAME", help="name or number of a run, where FILE has several (default: the newest)")
    parser.add_argument("--errors", type=int, default=5, metavar="N", help="show the N mistakes that the model was surest of (default: 5)")
    parser.add_argument("--compare", action="store_true", help="compare all runs of one FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the intervals of a comparison (default: 0)")
    parser.add_argument(
        *("--output_dir", "--output-dir"),
        type=Path,
        metavar="DIR",
        help="folder for the report (default: beside the run); runs of a source are looked for there, too, where training has put them",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.errors < 0:
        raise BadSetting(f"--errors {args.errors}: a number from 0 up is expected.")
    if args.run is not None and len(args.files) > 1:
        raise BadSetting("--run chooses among the runs of one FILE; with several, name a result file of each run.")
    columns = shutil.get_terminal_size((100, 24)).columns
    comparing = args.compare or len(args.files) > 1
    tables, report = _compared(args) if comparing else _single(args, columns)
    parts = [render(table, columns) for table in tables]
    if report is not None:
        parts.append(f"Report: {report}")
    text = "\n\n".join(parts)
    if args.logfile is not None:
        write_text(args.logfile, text + "\n", "--logfile")
    print(text)


def _single(args: argparse.Namespace, columns: int) -> tuple[list[Table], Path | None]:
    """The tables of one run, after a list of all that FILE could mean, and the page."""
    runs = find_runs(args.files[0], args.output_dir)
    analysis = analyse_run(choose_run(runs, args.run), args.errors)
    if args.charts:
        from bert_train_parallel.analysis.page import write_report

        analysis = write_report(analysis, _report_folder(args, analysis.files.report))
    listed = [runs_table(runs, analysis.files)] if len(runs) > 1 else []
    return [*listed, *tables_of(analysis, widest_matrix(columns, analysis.counts))], analysis.report


def _compared(args: argparse.Namespace) -> tuple[list[Table], Path | None]:
    """The tables of several runs side by side: the newest of each FILE, or all of one."""
    found = [find_runs(path, args.output_dir) for path in args.files]
    chosen = found[0] if len(found) == 1 else [choose_run(runs, None) for runs in found]
    comparison = compare([analyse_run(files, errors=0) for files in chosen], args.seed)
    report = None
    if args.charts:
        from bert_train_parallel.analysis.page import write_comparison

        first = comparison.runs[0].files
        report = write_comparison(comparison, _report_folder(args, first.folder / f"{first.stem}_comparison"))
    return tables_of_comparison(comparison), report


def _report_folder(args: argparse.Namespace, beside: Path) -> Path:
    return args.output_dir / beside.name if args.output_dir is not None else beside


if __name__ == "__main__":
    sys.exit(main())
