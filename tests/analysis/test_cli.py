"""The command: what it prints, what it draws, and that nothing is left half done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bert_train_parallel.analysis.cli import main

from .conftest import MakeRun

ODD_NAMES = ["$5 off $9", "<script>alert(1)</script>", "日本語", "🎉 party", "x" * 200, "two\nlines \x1b[31m", r"\frac{1}{2}", "a&b"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_run_is_printed_from_labels_to_mistakes(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run(["left", "right", "neutral"])
    out = printed(capsys, files.result)
    for words in (
        "Run leanings",
        "Labels",
        "all   %  train   %",
        "95 % interval",
        "macro F1",
        "MCC",
        "kappa",
        "Confusion matrix: rows the truth",
        "normalised by truth",
        "precision  recall",
        "Mistakes that the model was surest of",
    ):
        assert re.sub(r" +", " ", words) in re.sub(r" +", " ", out)
    assert re.search(r"all labels +150 +100.0 +60 +100.0 +30 +100.0 +60 +100.0", out)


def test_nothing_heavy_is_loaded_without_charts(make_run: MakeRun) -> None:
    code = (
        "import sys; from bert_train_parallel.analysis.cli import main; main([sys.argv[1]]); "
        "print(*{'torch', 'pandas', 'matplotlib', 'transformers', 'tokenizers', 'pydantic'} & sys.modules.keys(), 'loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(make_run().result)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["loaded"]


def test_the_log_file_holds_what_is_printed(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "analysis.log"
    out = printed(capsys, make_run().result, "-l", log)
    assert log.read_text(encoding="utf-8") == out


def test_many_classes_are_printed_as_a_list_of_confusions(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"intent number {number}" for number in range(40)]
    out = printed(capsys, make_run(names, samples=600).result)
    assert "taken for" in out
    assert "a matrix of 40 classes is too wide here" in out
    assert max(map(len, out.splitlines())) <= 140
    assert re.search(r"\d+ intent number 39 ", out)


def test_no_label_can_write_to_the_terminal_or_the_page(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run(ODD_NAMES, samples=400, epochs=1)
    out = printed(capsys, files.result, "--charts")
    assert "\x1b" not in out
    page = (files.report / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


class Links(HTMLParser):
    """Collects tags that were not closed, and every address in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_charts_come_as_png_and_svg_with_one_page_that_needs_nothing_else(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run(["left", "right", "neutral"])
    out = printed(capsys, files.result, "-c")
    assert out.rstrip().endswith(f"Report: {files.report / 'report.html'}")
    drawn = {path.name for path in files.report.iterdir()} - {"report.html"}
    charts = ["confusion_counts", "confusion_normalised", "classes", "epochs", "steps", "calibration", "lengths"]
    assert drawn == {f"{chart}.{kind}" for chart in charts for kind in ("png", "svg")}
    assert all((files.report / name).read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"<?xml") for name in drawn)
    links = Links()
    links.feed((files.report / "report.html").read_text(encoding="utf-8"))
    assert links.open == []
    assert len(links.addresses) == len(charts)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in links.addresses)


def test_a_report_is_replaced_as_a_whole_and_is_the_same_for_the_same_run(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run()
    printed(capsys, files.result, "-c")
    first = {path.name: path.read_bytes() for path in files.report.iterdir()}
    (files.report / "old.png").write_bytes(b"")
    printed(capsys, files.result, "-c")
    assert {path.name: path.read_bytes() for path in files.report.iterdir()} == first
    assert not [path for path in files.folder.iterdir() if path.name.startswith(".") and "report" in path.name]


def test_regression_is_drawn_as_a_scatter(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = make_run(names=())
    out = printed(capsys, files.result, "-c", "--output_dir", tmp_path / "out")
    assert "Pearson r" in out
    assert "Largest errors" in out
    drawn = {path.name for path in (tmp_path / "out" / "leanings_report").iterdir()}
    assert {"scatter.png", "residuals.svg", "report.html"} <= drawn
    assert not files.report.exists()


def test_what_is_long_stands_after_the_charts(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run([f"{number:03}" for number in range(61)], samples=305)
    printed(capsys, files.result, "-c")
    titles = re.findall("<h2>([^<]+)</h2>", (files.report / "report.html").read_text(encoding="utf-8"))
    assert titles.index("Figures") < titles.index("Confusion matrix") < titles.index("Labels")
    assert len(titles) == len(set(titles) | {"Epochs"}) + 1  # the chart and the table of epochs


def test_several_runs_of_a_store_are_listed_and_the_newest_is_shown(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(run="a")
    files = make_run(run="b", seed=1)
    out = printed(capsys, files.folder / "leanings.sqlite")
    assert out.startswith("Runs, the newest last\n  1 leanings-a")
    assert "Shown is the newest of 2 runs" in out
    assert "\nRun leanings-b\n" in out
    assert "\nRun leanings-a\n" in printed(capsys, files.folder / "leanings.sqlite", "--run", "1")


def test_a_damaged_run_does_not_hide_the_others(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(run="a").result.write_text("{")
    files = make_run(run="b", seed=1)
    out = printed(capsys, files.folder / "leanings.sqlite", "--run", "b")
    assert re.search(r"1 leanings-a +damaged", out)
    assert main([str(files.folder / "leanings.sqlite"), "--run", "a"]) == 2
    assert "leanings-a_RESULT.json is damaged" in capsys.readouterr().err


def test_a_run_without_test_samples_shows_what_else_it_has(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run()
    result = json.loads(files.result.read_text())
    files.predictions.write_text(files.predictions.read_text().partition("\n")[0] + "\n")
    assert main([str(files.result)]) == 2  # RESULT has figures of samples that are gone
    assert "has a header and no predictions" in capsys.readouterr().err
    result["figures"]["test"] = {"samples": 0, "rows": 0}
    files.result.write_text(json.dumps(result))
    out = printed(capsys, files.result, "-c")
    assert "Epochs" in out
    assert (files.report / "epochs.png").exists()
    assert not (files.report / "confusion_counts.png").exists()


def test_a_damaged_store_is_left_out_aloud(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    files = make_run()
    (files.folder / "leanings.sqlite").write_bytes(b"no store")
    out = printed(capsys, files.result)
    assert re.search(r"leanings.sqlite +without it: label distribution and texts \(it cannot be read\)", out)
    assert main([str(files.folder / "leanings.sqlite")]) == 2


def test_runs_are_compared_side_by_side(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(run="a", learning_rate=1e-5), make_run(run="b", seed=1, skill=4, learning_rate=5e-5)
    out = printed(capsys, first.result, second.result, "-c")
    assert re.search(r"leanings-b +accuracy +\+0\.\d+ +\+0\.\d+ to \+0\.\d+ +60 ", out)
    assert re.search(r"learning_rate +1e-05 +5e-05", out)
    assert (first.folder / "leanings-a_comparison" / "differences.png").exists()
    assert printed(capsys, first.folder / "leanings.sqlite", "--compare") == out.partition("\n\nReport: ")[0] + "\n"


def test_runs_of_a_source_are_found_where_training_was_told_to_put_them(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = make_run().folder
    source = tmp_path / "data" / "leanings.csv"
    source.parent.mkdir()
    source.touch()
    assert printed(capsys, source, "--output_dir", out) == printed(capsys, out / "leanings_RESULT.json")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.sqlite"], "nowhere.sqlite: there is no such file"),
        (["n" * 300 + "_RESULT.json"], "_RESULT.json: there is no such file"),
        (["{result}", "--run", "nine"], "--run nine: there is no such run"),
        (["{result}", "--errors", "-1"], "--errors -1"),
        (["{result}", "{result}", "--run", "1"], "--run chooses among the runs of one FILE"),
        (["{result}", "--compare"], "no second run"),
        (["{text}"], "If it was trained with --output_dir DIR, type that here, too, or name DIR/other_RESULT.json"),
        (["{text}", "--output_dir", "nowhere"], "no run of it has written results beside it"),
    ],
)
def test_a_mistake_is_one_line_that_changes_nothing(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    files = make_run()
    (tmp_path / "other.csv").write_text("text,label\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    filled = [argument.format(result=files.result, text=tmp_path / "other.csv") for argument in arguments]
    assert main(filled) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_terminal_without_unicode_still_shows_the_figures(make_run: MakeRun) -> None:
    code = "import sys; from bert_train_parallel.analysis.cli import main; sys.exit(main([sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_run(["日本語", "ham"]).result)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=True,
    )
    assert b"\\u65e5" in done.stdout


@pytest.mark.parametrize("classes", [3, 30, 60, 130])
def test_no_name_in_a_chart_begins_beyond_its_edge(make_run: MakeRun, capsys: pytest.CaptureFixture[str], classes: int) -> None:
    files = make_run([f"intent number {number}" for number in range(classes)], samples=classes * 10)
    printed(capsys, files.result, "-c")
    for path in files.report.glob("*.svg"):
        places = re.findall(r'transform="translate\((-?[\d.]+) (-?[\d.]+)\)', path.read_text())
        assert places
        assert all(float(x) >= 0 and float(y) >= 0 for x, y in places), path.name
