"""Nodes that become one world, or say why not: `launch.py` on several hosts, with real names, addresses and cables."""

from __future__ import annotations

import json
import sys

import pytest

from .fleet import ROOT, Host, ip
from .launches import SAY_WHO, SOON_S, WAIT, all_end, all_run, all_say, everything, start_all, start_with_map


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [2, 3, 1], [1, 1, 1, 1]])
def test_every_rank_of_every_host_knows_its_place(hosts: list[Host], counts: list[int]) -> None:
    runs = start_all(hosts, counts, SAY_WHO)
    all_end(runs, 0)
    for number, run in enumerate(runs):
        first = sum(counts[:number])
        for local in range(counts[number]):
            assert f"rank {first + local} of {sum(counts)}, local {local}, attempt 0 on {run.host.name}" in run.text


@pytest.mark.parametrize(
    "gpu_map",
    [
        {"alpha": 1, "beta": 2},
        {"10.77.0.1": 1, "10.77.0.2": 2},
        {"fd77::1": 1, "beta-6": 2},
        {"alpha": 1, "localhost": 2},
    ],
)
def test_a_node_finds_itself_in_the_map_and_the_same_line_serves_every_host(hosts: list[Host], gpu_map: dict[str, int]) -> None:
    runs = start_with_map(hosts[:2], gpu_map, SAY_WHO)
    all_end(runs, 0)
    assert "rank 0 of 3" in runs[0].text
    assert "rank 2 of 3, local 1" in runs[1].text


def test_here_gpus_narrows_a_node_of_the_map_and_all_ranks_are_right(hosts: list[Host]) -> None:
    runs = []
    for host, flags in zip(hosts[:2], (["--here_gpus", "1"], []), strict=False):
        runs.append(host.launch("--other_gpus", '{"alpha": 3, "beta": 1}', *flags, host.script(SAY_WHO)))
    all_end(runs, 0)
    assert "rank 1 of 2, local 0" in runs[1].text


def test_without_node_ranks_the_order_of_arrival_counts_and_is_said(hosts: list[Host]) -> None:
    line = ["--here_gpus", "1", "--other_gpus", "2", "--master_addr", "alpha"]
    runs = [hosts[0].launch(*line, hosts[0].script(SAY_WHO))]
    for host in (hosts[2], hosts[1]):
        runs.append(host.launch(*line, host.script(SAY_WHO)))
        runs[-1].wait_for("alpha knows this node now", SOON_S)
    all_end(runs, 0)
    all_say(runs, "node ranks in order of arrival: alpha 0, gamma 1, beta 2.")
    assert "rank 1 of 3" in runs[1].text


def test_a_node_that_comes_late_is_waited_for_aloud(hosts: list[Host]) -> None:
    runs = start_all(hosts[:2], [1, 1, 1], SAY_WHO)
    runs[0].wait_for("still waiting for 1 GPU on port 29500; here so far: alpha (1 CPU process", SOON_S)
    runs[1].wait_for("still waiting for 1 GPU", SOON_S)
    late = hosts[2].launch("--here_gpus", "1", "--other_gpus", "2", "--node_rank", "2", "--master_addr", "alpha", hosts[2].script(SAY_WHO))
    all_end([*runs, late], 0)


def test_a_master_that_comes_late_is_waited_for_aloud(hosts: list[Host]) -> None:
    beta = hosts[1].launch("--other_gpus", "1", "--node_rank", "1", "--master_addr", "alpha", hosts[1].script(SAY_WHO))
    beta.wait_for("alpha (10.77.0.1) refuses connections on port 29500: launch.py has not started there", SOON_S)
    alpha = hosts[0].launch("--other_gpus", "1", hosts[0].script(SAY_WHO))
    all_end([alpha, beta], 0)


def test_a_node_that_never_comes_is_named_at_the_deadline_on_every_node(hosts: list[Host]) -> None:
    runs = start_with_map(hosts[:2], {"alpha": 1, "beta": 1, "gamma": 4}, SAY_WHO, "--join_timeout", "2")
    all_end(runs, 2)
    all_say(runs, "4 GPUs on gamma (4) never came; here: alpha (1 CPU process", "--join_timeout")


# mistakes: every node says the same sentence, with the node and the flag


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--other_gpus", "7"), ["beta counts 1 here and 7 elsewhere", "--other_gpus"]),
        (("--here_gpus", "2"), ["beta counts 2 here and 2 elsewhere", "--here_gpus"]),
        (("--node_rank", "0", "--master_addr", "10.77.0.2"), []),
        (("--node_rank", "2"), ["beta and gamma are both node 2", "--node_rank"]),
        (("--max_restarts", "1"), ["--max_restarts: 0 on alpha, 1 on beta"]),
    ],
)
def test_a_flag_that_differs_ends_every_node_with_its_name(hosts: list[Host], flags: tuple[str, ...], words: list[str]) -> None:
    if not words:
        flags = (*flags, "--join_timeout", "1")
    runs = start_all(hosts, [1, 1, 1], SAY_WHO, flags_of={"beta": flags, **({} if words else {"alpha": ("--join_timeout", "1")})})
    all_end(runs, 2)
    if words:
        all_say(runs, *words)
    else:  # beta takes itself for the master: nobody can tell that from a node that has not started, before the deadline
        all_say([runs[0]], "1 GPU never came; here: alpha (1 CPU process")
        all_say([runs[1]], "2 GPUs never came; here: beta (1 CPU process")


def test_another_argument_file_or_script_is_named(hosts: list[Host]) -> None:
    for host, (lr, data, script) in zip(hosts, [("1", "a", "#"), ("2", "a", "#"), ("1", "b", "#"), ("1", "a", "# other")], strict=True):
        (host.folder / "texts.csv").write_text(data)
        place = [] if host.name == "alpha" else ["--master_addr", "alpha", "--node_rank", str(hosts.index(host))]
        host.launch("--other_gpus", "3", *place, host.script(script), "texts.csv", "--lr", lr)
    runs = [host.runs[0] for host in hosts]
    all_end(runs, 2)
    all_say(
        runs,
        'after --lr: "1" on alpha, "2" on beta',
        "texts.csv has another content on gamma (1 bytes",
        "script.py has another content on delta",
    )


def test_data_that_is_not_there_is_named_and_send_data_brings_it(hosts: list[Host]) -> None:
    (hosts[0].folder / "texts.csv").write_text("text,label\n" * 1000)
    script = "import sys; print(len(open(sys.argv[1]).read()), 'characters')"
    for flags, code in (((), 2), (("--send_data",), 0)):
        runs = []
        for number, host in enumerate(hosts[:3]):
            place = ["--master_addr", "alpha", "--node_rank", str(number)] if number else []
            runs.append(host.launch("--other_gpus", "2", *place, *flags, host.script(script), "texts.csv"))
        all_end(runs, code)
        if code:
            all_say(runs, "texts.csv is not on beta", "texts.csv is not on gamma", "--send_data")
    all_say(runs, "11000 characters")


def test_another_version_is_named(hosts: list[Host]) -> None:
    for folder, version in (("old", "2.9.1"),):
        info = hosts[1].folder / folder / f"torch-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    alpha = hosts[0].launch("--other_gpus", "1", hosts[0].script(SAY_WHO))
    path = {"PYTHONPATH": f"{hosts[1].folder / 'old'}:{ROOT}"}
    beta = hosts[1].launch("--other_gpus", "1", "--node_rank", "1", "--master_addr", "alpha", hosts[1].script(SAY_WHO), environment=path)
    all_end([alpha, beta], 2)
    all_say([alpha, beta], "2.9.1 on beta", "torch: ", "pip install torch==")


@pytest.mark.parametrize("order", [["alpha", "beta"], ["beta", "alpha"]])
def test_maps_in_another_order_are_found_although_both_nodes_or_none_is_the_master(hosts: list[Host], order: list[str]) -> None:
    runs = []
    for host, first in zip(hosts[:2], order, strict=True):
        gpu_map = {first: 1, "beta" if first == "alpha" else "alpha": 1}
        runs.append(host.launch("--gpu_map", json.dumps(gpu_map), host.script(SAY_WHO)))
    all_end(runs, 2)
    all_say(runs, "alpha and beta", "Copy one file to every node")


def test_a_machine_that_is_not_in_the_map_is_told_its_own_names(hosts: list[Host]) -> None:
    run = start_with_map(hosts[2:3], {"alpha": 1, "beta": 1}, SAY_WHO)
    all_end(run, 2)
    all_say(run, "10.77.0.3", "gamma", "is not in the GPU map, which has alpha, beta", "--host")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--node_rank", "1", "--master_addr", "nobody"), "'nobody' has no address"),
        (("--node_rank", "1"), "--node_rank 1 needs --master_addr"),
        (("--node_rank", "0", "--master_addr", "beta"), "--master_addr beta is not an address of this machine"),
    ],
)
def test_what_waiting_cannot_mend_is_said_at_once(hosts: list[Host], flags: tuple[str, ...], words: str) -> None:
    run = hosts[0].launch("--other_gpus", "1", *flags, hosts[0].script(SAY_WHO))
    all_end([run], 2)
    all_say([run], words)


def test_an_address_that_nobody_has_is_said_and_given_up_at_the_deadline(hosts: list[Host]) -> None:
    flags = ["--other_gpus", "1", "--node_rank", "1", "--join_timeout", "4"]
    silent = hosts[0].launch(*flags, "--master_addr", "10.77.0.99", hosts[0].script(SAY_WHO))
    no_route = hosts[1].launch(*flags, "--master_addr", "192.0.2.1", hosts[1].script(SAY_WHO))
    itself = hosts[2].launch(*flags, "--master_addr", "localhost", hosts[2].script(SAY_WHO))
    all_end([silent, no_route, itself], 2)
    assert "10.77.0.99 does not answer" in silent.text or "10.77.0.99 cannot be reached" in silent.text
    all_say([no_route], "192.0.2.1 cannot be reached from here")
    all_say([itself], "is this machine itself; --master_addr must name the other one")


def test_a_port_that_is_taken_is_told_on_both_sides(hosts: list[Host]) -> None:
    other = hosts[0].start(sys.executable, "-m", "http.server", "29500")
    other.wait_for("Serving", SOON_S)
    alpha = hosts[0].launch("--other_gpus", "1", hosts[0].script(SAY_WHO))
    flags = ["--other_gpus", "1", "--node_rank", "1", "--master_addr", "alpha", "--join_timeout", "1"]
    beta = hosts[1].launch(*flags, hosts[1].script(SAY_WHO))
    all_end([alpha, beta], 2)
    all_say([alpha], "port 29500 of this machine is taken by python", "--master_port 29501")
    all_say([beta], "something answers on alpha, port 29500, but it is not launch.py")
    other.process.kill()


def test_a_secret_that_differs_is_told_on_both_sides_and_never_shown(hosts: list[Host]) -> None:
    runs = start_all(
        hosts, [1, 1], SAY_WHO, "--join_timeout", "3", flags_of={"alpha": ("--job_token", "mango"), "beta": ("--job_token", "kiwi")}
    )
    all_end(runs, 2)
    all_say(runs, "The --job_token of this node is not the one of alpha")
    assert not any(secret in run.text for run in runs for secret in ("mango", "kiwi"))


def test_a_public_address_needs_a_token(hosts: list[Host]) -> None:
    for number, host in enumerate(hosts[:2], 1):
        ip("-n", host.space, "address", "add", f"11.0.0.{number}/24", "dev", "eth0")
    try:
        for token, code in (((), 2), (("--job_token", "mango"), 0)):
            line = ["--here_gpus", "1", "--other_gpus", "1", "--join_timeout", "3", *token]
            alpha = hosts[0].launch(*line, hosts[0].script(SAY_WHO))
            beta = hosts[1].launch(*line, "--node_rank", "1", "--master_addr", "11.0.0.1", hosts[1].script(SAY_WHO))
            all_end([alpha, beta], code)
            if code:
                all_say([alpha, beta], "11.0.0.2 is neither a private address nor a host of the GPU map", "--job_token")
    finally:
        for number, host in enumerate(hosts[:2], 1):
            ip("-n", host.space, "address", "delete", f"11.0.0.{number}/24", "dev", "eth0")


def test_one_node_too_many_is_told_and_the_others_run_on(hosts: list[Host]) -> None:
    runs = start_all(hosts[:2], [1, 1], WAIT)
    all_run(runs)
    late = hosts[2].launch("--other_gpus", "1", "--node_rank", "1", "--master_addr", "alpha", hosts[2].script(WAIT))
    all_end([late], 2)
    all_say([late], "is complete without gamma: alpha (1), beta (1)")
    assert all(run.process.poll() is None for run in runs)
    runs[0].process.terminate()
    for run in runs:
        run.wait(SOON_S)


ALL_REDUCE = """
import os, torch
import torch.distributed as dist
dist.init_process_group("gloo")
values = torch.full((4_000_000,), float(dist.get_rank() + 1))
dist.all_reduce(values)
print("sum", values.sum().item() / 4_000_000, os.environ["GLOO_SOCKET_IFNAME"], flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_of_different_hosts_talk_over_the_network_between_them(hosts: list[Host]) -> None:
    before = [host.bytes_sent() for host in hosts[:3]]
    runs = start_with_map(hosts[:3], {"alpha": 1, "beta": 2, "gamma": 1}, ALL_REDUCE)
    for run in runs:
        assert run.wait(120) == 0, run.text
    all_say(runs, "sum 10.0 eth0")
    assert all(host.bytes_sent() - sent > 4_000_000 for host, sent in zip(hosts, before, strict=False))


@pytest.mark.slow
def test_check_agrees_measures_and_stops(hosts: list[Host]) -> None:
    runs = start_with_map(hosts[:2], {"alpha": 1, "beta": 1}, "raise SystemExit('must not run')", "--check")
    for run in runs:
        assert run.wait(120) == 0, run.text
    all_say(runs[:1], "2 ranks on 2 nodes agree and reach each other (gloo)", "MB/s", "BERT-base (440 MB of gradients)")


OPEN = ["open TCP ports 32768 to 60999 between all nodes"]
JOIN = """
import sys
import torch
from bert_train_parallel.errors import run_command
from bert_train_parallel.rank import Rank
from bert_train_parallel.training.last_words import told_to_launcher
from bert_train_parallel.training.world import join_world
def join():
    with join_world(Rank.from_environ(), torch.device("cpu")) as world:
        print("met", world.hosts)
    return 0
sys.exit(run_command("script", lambda: told_to_launcher(join)))
"""


@pytest.mark.slow
def test_a_port_of_rank_0_that_a_firewall_drops_is_named_on_every_node(hosts: list[Host]) -> None:
    with hosts[0].mute(30000, 30000):
        runs = start_with_map(hosts[:2], {"alpha": 1, "beta": 1}, JOIN, "--join_timeout", "6", "--store_port", "30000")
        assert [run.wait(60) for run in runs] == [2, 2], everything(runs)
    all_say(runs, "gets no answer from rank 0 at 10.77.0.1, port 30000, within 6 s", "--store_port", *OPEN)


@pytest.mark.slow
def test_ports_of_the_ranks_that_a_firewall_drops_are_named_on_every_node(hosts: list[Host]) -> None:
    """By a launch and by `--check`: side by side, as each waits for half a minute."""
    ways = {"30000": ["--master_port", "29500"], "30100": ["--master_port", "29600", "--check"]}
    with hosts[0].mute(32768, 60999):
        runs = {
            port: start_with_map(hosts[:2], {"alpha": 1, "beta": 1}, JOIN, "--join_timeout", "6", "--store_port", port, *flags)
            for port, flags in ways.items()
        }
        for port, both in runs.items():
            assert [run.wait(60) for run in both] == [2, 2], everything(both)
            all_say(both, f"reached the ranks' store at 10.77.0.1, port {port}, but not every other rank", *OPEN)


def test_a_firewall_before_the_masters_port_is_told_apart_from_a_wrong_map(hosts: list[Host]) -> None:
    with hosts[0].mute(29500, 29500):
        runs = start_with_map(hosts[:2], {"alpha": 1, "beta": 1}, SAY_WHO, "--join_timeout", "10")
        all_end(runs, 2)
    all_say(runs, "beta does not reach alpha, the master, although alpha reaches beta", "firewall", "--master_port")


def test_a_second_master_that_names_the_first_one_is_told_on_both(hosts: list[Host]) -> None:
    runs = [host.launch("--other_gpus", "1", "--node_rank", "0", "--master_addr", "alpha", host.script(SAY_WHO)) for host in hosts[:2]]
    all_end(runs, 2)
    all_say(runs, "--master_addr alpha is not an address of this machine", "beta cannot take part")


def test_a_node_that_cannot_take_part_says_why_on_every_node(hosts: list[Host]) -> None:
    alpha = hosts[0].launch("--other_gpus", "1", hosts[0].script(SAY_WHO))
    flags = ["--other_gpus", "1", "--node_rank", "1", "--master_addr", "alpha", "--device", "cuda"]
    beta = hosts[1].launch(*flags, hosts[1].script(SAY_WHO))
    all_end([alpha, beta], 2)
    all_say([alpha, beta], "beta cannot take part", "--device cuda")


@pytest.mark.parametrize(
    ("beta_has", "words"),
    [
        ("no script", ["beta cannot take part: script.py: no such file"]),
        ("another map", ["beta cannot take part: ", "--host"]),
        ("two names", ["beta cannot take part: beta and 10.77.0.2 in the GPU map are all this machine"]),
    ],
)
def test_a_mistake_that_one_node_finds_by_itself_is_told_on_the_others_too(hosts: list[Host], beta_has: str, words: list[str]) -> None:
    runs = []
    for host in hosts[:2]:
        gpu_map = {"alpha": 1, "beta": 1}
        if host.name == "beta":
            gpu_map = {"another map": {"alpha": 1, "gamma": 1}, "two names": {"alpha": 1, "beta": 1, "10.77.0.2": 1}}.get(beta_has, gpu_map)
        script = "script.py" if (host.name, beta_has) == ("beta", "no script") else host.script(SAY_WHO)
        runs.append(host.launch("--gpu_map", json.dumps(gpu_map), script))
        if host.name == "alpha":
            runs[0].wait_for("still waiting", SOON_S)
    all_end(runs, 2)
    all_say(runs[:1], *words)
    all_say(runs[1:], words[0].partition(": ")[2])
    assert len(runs[1].text.splitlines()) == 1, runs[1].text


def test_data_that_cannot_be_written_where_it_is_sent_is_told_on_every_node(hosts: list[Host]) -> None:
    for host in hosts[:2]:
        (host.folder / "texts").mkdir()
    (hosts[0].folder / "texts" / "a.csv").write_text("text,label\n")
    (hosts[1].folder / "texts").chmod(0o500)
    no_root = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]  # else a mode forbids nothing
    runs = []
    for number, host in enumerate(hosts[:2]):
        place = ["--master_addr", "alpha", "--node_rank", str(number)] if number else []
        words = [sys.executable, str(ROOT / "launch.py"), "--other_gpus", "1", "--send_data", *place, host.script(SAY_WHO), "texts/a.csv"]
        runs.append(host.start(*(no_root if number else []), *words))
    all_end(runs, 2)
    all_say(runs, "beta cannot take part: ", "a.csv cannot be written (permission denied)")


def test_two_machines_with_one_name_are_told_so(hosts: list[Host]) -> None:
    gpu_map = json.dumps({"alpha": 1, "beta": 1})
    runs = [host.launch("--gpu_map", gpu_map, "--host", "alpha", host.script(SAY_WHO)) for host in hosts[:2]]
    all_end(runs[1:], 2)
    all_say(runs[1:], "Two machines call themselves alpha", "--host")
    runs[0].process.terminate()
    runs[0].wait(SOON_S)


def test_a_name_of_the_map_without_an_address_is_told_while_it_is_waited_for(hosts: list[Host]) -> None:
    run = hosts[0].launch("--gpu_map", json.dumps({"alpha": 1, "betta": 1}), "--join_timeout", "3", hosts[0].script(SAY_WHO))
    all_end([run], 2)
    all_say([run], "alpha knows no address of betta: check the spelling in the GPU map")
