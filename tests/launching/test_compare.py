"""What nodes disagree about is told with the node, the value and the flag."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bert_train_parallel.launching.compare import problems
from bert_train_parallel.launching.plan import FOLDER, Hello, LaunchRequest, Word

REQUEST = LaunchRequest(("python", "train.py", "data.csv"), here=1, others=1)
COMMAND = (Word("python"), Word("train.py", "90:aa"), Word("data.csv", "1200:bb"), Word("--lr"), Word("1e-5"))
SAME = {"bert-train-parallel": "1.0.0", "torch": "2.13.0", "NCCL": "2.29.3", "--gpu_map": "none", "--elastic": "no"}
ALPHA = Hello("alpha", 1, others=1, same=SAME, command=COMMAND)
BETA = replace(ALPHA, host="beta")


def with_word(number: int, word: Word) -> Hello:
    return replace(BETA, command=(*COMMAND[:number], word, *COMMAND[number + 1 :]))


def test_nodes_that_were_asked_for_the_same_have_no_problem() -> None:
    assert problems(REQUEST, [ALPHA, BETA]) == []


def test_files_may_lie_in_different_folders_if_their_content_is_the_same() -> None:
    assert problems(REQUEST, [ALPHA, with_word(2, Word("/data/texts/data.csv", "1200:bb"))]) == []


def test_a_folder_is_compared_by_its_name_alone() -> None:
    output = [replace(hello, command=(*COMMAND, Word("out", mark))) for hello, mark in ((ALPHA, FOLDER), (BETA, ""))]
    assert problems(REQUEST, output) == []


def test_a_version_that_is_not_known_on_one_node_is_not_compared() -> None:
    assert problems(REQUEST, [ALPHA, replace(BETA, same=SAME | {"NCCL": ""})]) == []


@pytest.mark.parametrize(
    ("beta", "words"),
    [
        (replace(BETA, others=3), ["alpha counts 1 GPU here and 1 elsewhere, 2 in all; beta counts 1 here and 3", "--other_gpus"]),
        (with_word(4, Word("2e-5")), ['after --lr: "1e-5" on alpha, "2e-5" on beta']),
        (with_word(1, Word("other.py", "90:aa")), ['"train.py" on alpha, "other.py" on beta']),
        (replace(BETA, command=COMMAND[:3]), ['alpha has the argument "--lr", beta does not']),
        (with_word(2, Word("data.csv", "1300:cc")), ["data.csv has another content on beta (1,300 bytes, cc)", "--send_data"]),
        (with_word(1, Word("train.py", "91:dd")), ["train.py has another content on beta", "Copy one file to every node."]),
        (with_word(2, Word("data.csv")), ["data.csv is not on beta", "--send_data"]),
        (replace(BETA, same=SAME | {"torch": "2.12.1"}), ["torch: 2.13.0 on alpha, 2.12.1 on beta", "pip install torch==2.13.0"]),
        (replace(BETA, same=SAME | {"--elastic": "yes"}), ["--elastic: no on alpha, yes on beta"]),
        (replace(BETA, same=SAME | {"--gpu_map": "alpha=1 beta=1"}), ["--gpu_map: none on alpha, alpha=1 beta=1 on beta"]),
        (replace(BETA, ranks=3, others=-1), ["4 GPUs came and 2 were announced"]),
        (replace(BETA, node_rank=0), ["alpha and beta are both node 0", "--node_rank"]),
        (replace(BETA, problem="no GPU is free"), ["beta cannot take part: no GPU is free"]),
    ],
)
def test_a_difference_is_told_with_node_value_and_what_to_type(beta: Hello, words: list[str]) -> None:
    found = problems(REQUEST, [ALPHA, beta])
    assert len(found) == 1
    assert all(part in found[0] for part in words), found


def test_a_file_that_the_master_lacks_is_told_as_such() -> None:
    alpha = replace(ALPHA, command=(*COMMAND[:2], Word("data.csv"), *COMMAND[3:]))
    assert problems(REQUEST, [alpha, BETA]) == ["data.csv is not on alpha, the master. Copy it there from beta."]


def test_three_nodes_that_came_twice_are_told_once_each() -> None:
    hellos = [replace(ALPHA, others=3), replace(BETA, others=3, node_rank=1), replace(BETA, host="gamma", ranks=2, others=2, node_rank=1)]
    assert len(problems(replace(REQUEST, others=3), hellos)) == 1


def test_a_node_that_brings_more_than_its_map_says_is_told() -> None:
    request = LaunchRequest(("a.py",), gpu_map={"alpha": 1, "beta": 2}, node_rank=0)
    found = problems(request, [Hello("alpha", 1, node_rank=0), Hello("beta", 3, node_rank=1)])
    assert found == ["beta brings 3 GPUs, and the GPU map gives it 2. Correct the map, or --here_gpus on beta."]
