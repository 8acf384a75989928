"""Which failure was first, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_train_parallel.launching.failures import Ended, describe, is_consequence, read_error_file
from bert_train_parallel.rank import Rank


def ended(folder: Path, returncode: int = 1, log: str = "", error: object = None, world_size: int = 2) -> Ended:
    """A rank that ended so."""
    (folder / "log").write_text(log)
    if error is not None:
        (folder / "error.json").write_text(error if isinstance(error, str) else json.dumps(error))
    return Ended(Rank(rank=1, local_rank=1, world_size=world_size), 4242, returncode, str(folder / "log"), str(folder / "error.json"))


@pytest.mark.parametrize(
    "log",
    [
        "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3851",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error\nncclRemoteError: ...",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "BrokenPipeError: [Errno 32] Broken pipe",
    ],
)
def test_a_rank_that_lost_its_peer_is_a_consequence(tmp_path: Path, log: str) -> None:
    assert is_consequence(ended(tmp_path, 1, log))
    assert is_consequence(ended(tmp_path, -6, log))  # NCCL's watchdog aborts
    assert not is_consequence(ended(tmp_path, -9, log))
    assert not is_consequence(ended(tmp_path, -11, log))


def test_an_error_of_its_own_is_a_cause_whatever_was_printed_before(tmp_path: Path) -> None:
    assert not is_consequence(ended(tmp_path, 1, "ValueError: no such label"))
    own = {"message": {"message": "ValueError: no such label", "extraInfo": {"py_callstack": "..."}}}
    assert not is_consequence(ended(tmp_path, 1, "warning: Connection reset by peer, trying again", own))


def test_the_traceback_comes_from_the_error_file_else_from_the_log(tmp_path: Path) -> None:
    from_log = describe(ended(tmp_path, 1, "one\ntwo\n"), "alpha")
    assert from_log.words == "rank 1 on alpha (pid 4242) failed with exit code 1.\n  one\n  two"
    written = {"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "Traceback\n  File a\nValueError: x\n"}}}
    from_file = describe(ended(tmp_path, 1, "one\n", written), "alpha")
    assert from_file.words.splitlines()[1:] == ["  Traceback", "    File a", "  ValueError: x"]
    assert (from_file.kind, from_file.exit_code, from_file.rank) == ("exit", 1, 1)


def test_a_signal_is_named_and_gives_the_exit_code_of_a_shell(tmp_path: Path) -> None:
    failure = describe(ended(tmp_path, -11), "alpha")
    assert (failure.kind, failure.exit_code) == ("signal", 139)
    assert "was killed by SIGSEGV" in failure.words
    assert "out of memory" in describe(ended(tmp_path, -9), "alpha").words


def test_a_single_rank_is_not_repeated_since_its_output_stands_just_above(tmp_path: Path) -> None:
    assert len(describe(ended(tmp_path, 1, "one\ntwo\n", world_size=1), "alpha").words.splitlines()) == 1


@pytest.mark.parametrize("kind, code", [("usage", 2), ("nan", 3), ("oom", 4), ("stopped", 3)])
def test_what_our_trainer_says_in_one_sentence_is_all_that_is_told(tmp_path: Path, kind: str, code: int) -> None:
    error = {"message": {"message": "Type --lr 1e-5.", "extraInfo": {"py_callstack": "Traceback"}, "kind": kind, "exit_code": code}}
    failure = describe(ended(tmp_path, code, "a\nb\n", error), "alpha")
    assert (failure.kind, failure.exit_code, failure.words) == (kind, code, "Type --lr 1e-5.")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"message": null}', '{"message": 3}', '{"message": {"extraInfo": 1}}', "\x00"])
def test_a_file_that_is_not_an_error_file_is_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(text)
    assert read_error_file(str(path)) == {}
    assert describe(ended(tmp_path, 1, "last\n", text), "alpha").words.endswith("  last")
