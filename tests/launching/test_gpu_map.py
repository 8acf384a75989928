"""The JSON map: every way to write it wrong gets a sentence, and this machine finds itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_train_parallel.errors import BadGpuMap
from bert_train_parallel.launching.gpu_map import Place, find_place, read_gpu_map

README = {"foo.bar.com": 4, "127.0.0.1": 5, "172.12.145.1": 6}


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "gpus.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_map_keeps_the_order_of_its_hosts(tmp_path: Path) -> None:
    assert list(read_gpu_map(written(tmp_path, json.dumps(README))).items()) == list(README.items())


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert read_gpu_map(written(tmp_path, b"\xef\xbb\xbf" + b'{"alpha": 2}')) == {"alpha": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{}", "an empty object"),
        ("[4, 5]", "a list"),
        ("4", "a int"),
        ('{"alpha": 2', "is not JSON"),
        ("{'alpha': 2}", "is not JSON"),
        ('{"alpha": 2} {"beta": 1}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"alpha": 2, "alpha": 3}', '"alpha" 2 times'),
        ('{"Alpha": 2, "alpha": 3}', "in two spellings"),
        ('{"fd00::1": 2, "[fd00:0::1]": 3}', "in two spellings"),
        ('{"alpha": 0}', '"alpha" 0 GPUs'),
        ('{"alpha": -1}', '"alpha" -1 GPUs'),
        ('{"alpha": 2.0}', '"alpha" 2.0 GPUs'),
        ('{"alpha": "2"}', '"alpha" "2" GPUs'),
        ('{"alpha": true}', '"alpha" true GPUs'),
        ('{"alpha": null}', '"alpha" null GPUs'),
        ('{"alpha": {"gpus": 2}}', '"alpha" {"gpus": 2} GPUs'),
        ('{"alpha": 1e400}', '"alpha" Infinity GPUs'),
        ('{"alpha": 100000}', '"alpha" 100000 GPUs'),
        ('{"": 2}', 'the host ""'),
        ('{"al pha": 2}', 'the host "al pha"'),
        ('{"-oProxyCommand=x": 2}', "does not begin with a dash"),
        ('{"al\\u0007pha": 2}', "the host 'al\\x07pha'"),
        ('{"' + "a" * 300 + '": 2}', "at most 253 characters"),
        ('{"fe80::1%eth0": 2, "[fe80::1%eth0]": 3}', "in two spellings"),
        ('{"alpha:29500": 2}', "without a port"),
        ('{"[fd00::7]:29500": 2}', "without a port"),
        ('{"http://alpha": 2}', "the name or address alone"),
        ('{"root@alpha": 2}', "--ssh_user"),
        ("null", "holds null"),
        (b'\xff\xfe{\x00"\x00', "is not UTF-8"),
    ],
)
def test_a_map_that_cannot_be_gets_a_sentence_with_an_example(tmp_path: Path, content: str | bytes, words: str) -> None:
    source = written(tmp_path, content)
    with pytest.raises(BadGpuMap) as raised:
        read_gpu_map(source)
    sentence = str(raised.value)
    assert words in sentence
    assert source in sentence
    assert "\n" not in sentence


def test_a_map_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadGpuMap, match=r"no such file.*--other_gpus"):
        read_gpu_map(str(tmp_path / "none.json"))


def place(gpu_map: dict[str, int], names: set[str], addresses: set[str], known: dict[str, list[str]] | None = None, **flags) -> Place:  # type: ignore[no-untyped-def]
    found = known or {}
    return find_place(
        gpu_map, names=names, addresses=addresses, resolve_all=lambda hosts: {host: found.get(host, []) for host in hosts}, **flags
    )


def test_a_node_finds_itself_by_name_by_address_and_by_what_a_name_resolves_to() -> None:
    gpu_map = {"foo.bar.com": 4, "10.0.0.7": 5, "fd00::9": 1}
    assert place(gpu_map, {"foo.bar.com"}, {"10.0.0.1"}).node_rank == 0
    assert place(gpu_map, {"other"}, {"10.0.0.7"}).node_rank == 1
    assert place(gpu_map, {"other"}, {"fd00::9"}).node_rank == 2
    assert place(gpu_map, {"other"}, {"10.0.0.3"}, {"foo.bar.com": ["10.0.0.3"]}).node_rank == 0


@pytest.mark.parametrize("own", ["localhost", "127.0.0.1", "::1"])
def test_localhost_is_the_machine_that_no_other_host_of_the_map_is(own: str) -> None:
    gpu_map = {"foo.bar.com": 4, own: 5, "172.12.145.1": 6}
    assert place(gpu_map, {"laptop"}, {"127.0.0.1", "10.0.0.1"}).host == own
    assert place(gpu_map, {"foo.bar.com"}, {"127.0.0.1"}).host == "foo.bar.com"
    assert place(gpu_map, {"x"}, {"127.0.0.1", "172.12.145.1"}).host == "172.12.145.1"


def test_a_machine_that_is_left_out_takes_the_place_that_node_rank_gives() -> None:
    found = place({"beta": 3, "gamma": 1}, {"alpha"}, {"10.0.0.1"}, node_rank=1, here=2)
    assert list(found.gpu_map.items()) == [("beta", 3), ("localhost", 2), ("gamma", 1)]
    assert (found.node_rank, found.ranks) == (1, 2)


def test_a_machine_that_is_left_out_without_a_place_gets_a_sentence_with_its_own_names() -> None:
    with pytest.raises(BadGpuMap, match=r"This machine \(10\.0\.0\.1, alpha\) is not in the GPU map, which has beta, gamma.*--host"):
        place({"beta": 3, "gamma": 1}, {"alpha"}, {"10.0.0.1"})


def test_two_hosts_that_are_both_this_machine_are_named() -> None:
    with pytest.raises(BadGpuMap, match=r"alpha and 10\.0\.0\.1 in the GPU map are all this machine.*--host"):
        place({"alpha": 1, "10.0.0.1": 2}, {"alpha"}, {"10.0.0.1"})
    with pytest.raises(BadGpuMap, match=r"localhost and 127\.0\.0\.1"):
        place({"localhost": 1, "127.0.0.1": 2}, {"alpha"}, {"10.0.0.1"})


def test_an_alias_of_a_machine_that_is_listed_by_its_address_is_found() -> None:
    with pytest.raises(BadGpuMap, match=r"gpubox and 10\.0\.0\.1 in the GPU map are all this machine"):
        place({"gpubox": 1, "10.0.0.1": 2}, {"alpha"}, {"10.0.0.1"}, {"gpubox": ["10.0.0.1"]})
    with pytest.raises(BadGpuMap, match=r"alpha and gpubox in the GPU map are all this machine"):
        place({"alpha": 1, "gpubox": 2}, {"alpha"}, {"10.0.0.1"}, {"alpha": ["127.0.1.1"], "gpubox": ["10.0.0.1"]})


def test_the_zone_of_an_address_is_kept_and_says_nothing_about_whose_it_is() -> None:
    gpu_map = read_gpu_map('{"[fe80::1%eth0]": 1, "fe80::2%eth0": 2}')
    assert list(gpu_map) == ["fe80::1%eth0", "fe80::2%eth0"]
    assert place(gpu_map, {"alpha"}, {"fe80::2"}).node_rank == 1


def test_names_without_an_address_are_named_where_this_machine_finds_no_place() -> None:
    with pytest.raises(BadGpuMap, match=r"which has beta, gamma \(no address was found for gamma\)"):
        place({"beta": 3, "gamma": 1}, {"alpha"}, {"10.0.0.1"}, {"beta": ["10.0.0.2"]})


def test_host_says_which_one_it_is() -> None:
    assert place({"Alpha": 1, "beta": 2}, {"gamma"}, set(), host="alpha").host == "Alpha"
    assert place({"alpha": 1, "10.0.0.1": 2}, {"alpha"}, {"10.0.0.1"}, host="10.0.0.1").node_rank == 1
    with pytest.raises(BadGpuMap, match=r"--host gamma is not in the GPU map, which has alpha"):
        place({"alpha": 1}, {"gamma"}, set(), host="gamma")


def test_a_node_rank_that_contradicts_the_map_is_refused() -> None:
    with pytest.raises(BadGpuMap, match=r"--node_rank 1 is beta in the GPU map, and this machine is alpha, node 0"):
        place({"alpha": 1, "beta": 2}, {"alpha"}, set(), node_rank=1)
