"""What ranks print reaches the terminal line by line, and the log byte by byte, however it is written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_train_parallel.launching.output import LONGEST_LINE, RankStream, Sink, last_lines, prefixed

from .conftest import MARK, ROOT, Launcher, until


def pumped(chunks: list[bytes], folder: Path, prefix: bytes = b"[rank 1] ") -> tuple[bytes, bytes]:
    """What the terminal and the log get of what a rank wrote in these chunks."""
    reading, writing = os.pipe()
    with open(folder / "shown", "wb") as shown, open(folder / "log", "wb") as log:
        stream = RankStream(reading, Sink(shown.fileno()), os.dup(log.fileno()), prefix, shows_updates=True)
        for chunk in chunks:
            os.write(writing, chunk)
            while stream.pump():
                pass
        os.close(writing)
        while stream.pump():
            pass
        stream.close()
    return (folder / "shown").read_bytes(), (folder / "log").read_bytes()


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\r", b"\r\n", b"a b", b"\xff\xfe"]), max_size=20))
def test_the_log_is_complete_and_every_shown_line_has_its_rank(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    written = b"".join(chunks)
    shown, log = pumped(chunks, tmp_path_factory.mktemp("output"))
    assert log == written
    assert all(line.startswith(b"[rank 1] ") for line in re.split(rb"\r\n|\n|\r", shown) if line)
    bare = shown.replace(b"[rank 1] ", b"").replace(b"\r", b"").rstrip(b"\n")
    assert bare == written.replace(b"\r", b"").rstrip(b"\n") or b"[rank 1] " in written


def test_an_update_of_a_progress_bar_is_shown_when_the_next_one_comes(tmp_path: Path) -> None:
    shown, log = pumped([b"\r 10%", b"\r 20%", b"\r 30%\n"], tmp_path)
    assert shown == b"[rank 1]  10%\r[rank 1]  20%\r[rank 1]  30%\n"
    assert log == b"\r 10%\r 20%\r 30%\n"


def test_a_line_ended_as_on_windows_is_one_line_even_when_it_comes_in_two_pieces(tmp_path: Path) -> None:
    assert pumped([b"one\r", b"\ntwo\r\n"], tmp_path)[0] == b"[rank 1] one\r\n[rank 1] two\r\n"


def test_a_huge_line_is_shown_in_pieces_and_is_whole_in_the_log(tmp_path: Path) -> None:
    huge = b"x" * (3 * LONGEST_LINE)
    chunks = [huge[start : start + 4096] for start in range(0, len(huge), 4096)]
    shown, log = pumped([*chunks, b"\n"], tmp_path)
    assert log == huge + b"\n"
    assert shown.replace(b"[rank 1] ", b"").replace(b"\n", b"") == huge
    assert max(len(line) for line in shown.splitlines()) <= 2 * LONGEST_LINE


def test_a_single_rank_is_passed_on_untouched(tmp_path: Path) -> None:
    text = b"\x1b[1mbold\x1b[0m\rprompt? \xff"
    assert pumped([text], tmp_path, prefix=b"") == (text, text)


def test_bars_of_several_ranks_do_not_overwrite_each_other() -> None:
    assert prefixed(b"\r 1%\r 2%\r 3%\n", b"[rank 1] ", shows_updates=False) == b"[rank 1]  3%\n"


def test_the_last_lines_of_a_log_leave_out_what_was_overwritten(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\n\r 1%\r 2%\nText\xff\n\n" + b"y" * 5000 + b"\n")
    assert last_lines(str(tmp_path / "log"), 3) == [" 2%", "Text\N{REPLACEMENT CHARACTER}", "y" * 2000]
    assert last_lines(str(tmp_path / "none")) == []


def test_a_million_lines_all_arrive(launcher: Launcher) -> None:
    script = launcher.script("import sys\nfor start in range(0, 500000, 1000): print(*range(start, start + 1000), sep='\\n')")
    launch = launcher.run("--here_gpus", "2", "--log_dir", "logs", script)
    assert launch.process.returncode == 0
    by_rank: dict[str, list[str]] = {"[rank 0]": [], "[rank 1]": []}
    for line in launch.out.splitlines():
        by_rank[line[:8]].append(line[9:])
    expected = [str(number) for number in range(500_000)]
    assert by_rank == {"[rank 0]": expected, "[rank 1]": expected}
    logs = sorted((launcher.folder / "logs").glob("*/rank_*.log"))
    assert [log.read_text().split() == expected for log in logs] == [True, True]


def test_output_without_a_line_end_and_from_a_script_that_closes_its_streams_arrives(launcher: Launcher) -> None:
    script = launcher.script("import os\nprint('out', end='', flush=True); os.close(1); os.close(2)\nos._exit(0)\n")
    launch = launcher.run("--here_gpus", "2", script)
    assert launch.process.returncode == 0
    assert sorted(launch.out.splitlines()) == ["[rank 0] out", "[rank 1] out"]


def test_streams_stay_apart(launcher: Launcher) -> None:
    launch = launcher.run("-q", "--here_gpus", "2", launcher.script("import sys; print('a'); print('b', file=sys.stderr)"))
    assert sorted(launch.out.splitlines()) == ["[rank 0] a", "[rank 1] a"]
    assert sorted(launch.err.splitlines()) == ["[rank 0] b", "[rank 1] b"]


def start_piped(launcher: Launcher, *words: str) -> subprocess.Popen[bytes]:
    """A launch whose output is a pipe that the test may leave unread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *words],
        cwd=launcher.folder,
        env={**os.environ, "TMPDIR": str(launcher.folder), MARK: "piped"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_has_gone_does_not_end_the_run(launcher: Launcher) -> None:
    script = launcher.script("import time\nfor n in range(20): print(n); time.sleep(0.02)\nopen('finished', 'w').close()\n")
    process = start_piped(launcher, "--log_dir", "logs", script)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert (launcher.folder / "finished").exists()
    assert b"nobody reads the output any more" in err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pager_that_does_not_read_keeps_the_launcher_from_nothing(launcher: Launcher) -> None:
    script = launcher.script("print('x' * 100, flush=True)\nopen('begun', 'w').close()\nwhile True: print('x' * 10000)\n")
    with start_piped(launcher, "--here_gpus", "2", "--grace", "0.5", script) as process:
        assert until((launcher.folder / "begun").exists)
        try:
            process.wait(1.0)  # time for every pipe to fill up
        except subprocess.TimeoutExpired:
            pass
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident < 200 << 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(10.0) == 143


def test_on_a_terminal_each_line_erases_what_an_update_left_there(launcher: Launcher) -> None:
    script = launcher.script(
        "import os, sys\nif os.environ['RANK'] == '0': print('50%', end='\\r')\nprint(os.environ.get('BERT_TRAIN_TERMINAL'))"
    )
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "-q", "--here_gpus", "2", script],
        cwd=launcher.folder,
        env={**os.environ, "TMPDIR": str(launcher.folder)},
        stdout=terminal,
        stdin=subprocess.DEVNULL,
    )
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:  # how a terminal of Linux says that nobody writes to it any more
        pass
    os.close(master)
    assert process.wait() == 0
    assert shown.count(b"\x1b[K[rank ") == 3
    assert shown.count(b"] 1\r\n") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("flags", [[], ["--dry_run"]], ids=["ranks", "the plan"])
def test_a_full_disk_under_standard_output_is_named_so(flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("for number in range(5000): print('line', number)\n")
    command = [sys.executable, str(ROOT / "launch.py"), "--here_gpus", "1", "--device", "cpu", "--log_dir", str(tmp_path / "logs"), *flags]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, str(script)], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if flags:
        assert done.returncode == 2
        assert done.stderr == "launch: standard output: no space left on device. Free some, or send it to another place (> FILE).\n"
    else:
        assert done.returncode == 0
        assert (
            "launch: standard output cannot be written any more: no space left on device; the run goes on, with its output in "
            in done.stderr
        )
        (log,) = (tmp_path / "logs").rglob("*rank*0*")
        assert log.read_text().count("\n") == 5000


@pytest.mark.parametrize("flags", [[], ["--here_gpus", "2", "--device", "cpu"]])
def test_a_mistake_that_our_trainer_tells_is_the_one_line_on_standard_error(
    launcher: Launcher, tmp_path: Path, tiny_tokenizer: Path, flags: list[str]
) -> None:
    source = tmp_path / "one.csv"
    source.write_text("text,label\n" + "".join(f"the dog {number},a\n" for number in range(40)))
    words = [*flags, "bert_train_parallel.py", "--model", str(tiny_tokenizer), "--preponly"]
    early = launcher.run(*words, str(tmp_path / "none.csv"))
    assert early.wait() == 2
    assert early.out == ""
    assert early.err.count("\n") == 1
    late = launcher.run(*words, str(source))
    assert late.wait() == 2
    first, second = late.out.splitlines()[:2]
    assert first.startswith(f"launch: {2 if flags else 1} process")
    assert "UTF-8, comma-separated" in second
    assert "every sample has the label 'a'" in late.err
    assert late.err.count("\n") == 1
