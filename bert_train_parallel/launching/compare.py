"""What the nodes of one launch disagree about, in sentences that name the node, the value and the flag to change."""

from __future__ import annotations

from collections.abc import Sequence

from bert_train_parallel.errors import NodesDisagree
from bert_train_parallel.launching import network
from bert_train_parallel.launching.plan import FOLDER, Hello, LaunchRequest, in_node_order, missing_ranks, roll_call
from bert_train_parallel.launching.wire import printable

TODO = {
    "--gpu_map": "Copy one file to every node.",
    "--max_restarts": "Type the same on every node.",
    "--elastic": "Type the same on every node.",
    "--check": "Type the same on every node.",
    "--send_data": "Type the same on every node.",
    "bert-train-parallel": "Install one version of it on every node.",
    "torch": "Install one version on every node, for example: pip install torch=={0}",
    "transformers": "Install one version on every node, for example: pip install transformers=={0}",
    "NCCL": "It comes with torch: install one build of torch on every node.",
}


def problems(request: LaunchRequest, hellos: Sequence[Hello]) -> list[str]:
    """Every reason why these nodes cannot be one world, whoever is still to come; the master's hello is the first.

    >>> here = LaunchRequest(("train.py",), here=1, others=3)
    >>> problems(here, [Hello("alpha", 1, others=3), Hello("beta", 2, others=1)])
    ['alpha counts 1 GPU here and 3 elsewhere, 4 in all; beta counts 2 here and 1 elsewhere, 3 in all. Correct --other_gpus (or \
--here_gpus) so that all nodes count the same.']
    """
    found = [f"{hello.host} cannot take part: {hello.problem}" for hello in hellos if hello.problem]
    if found:
        return found
    master = hellos[0]
    for hello in hellos[1:]:
        found += different_settings(master, hello)
        found += different_totals(master, hello)
        found += different_words(master, hello, request.send_data)
    found += too_many(request, hellos)
    found += claimed_twice(hellos)
    if missing_ranks(request, hellos) == 0 and not found:
        try:
            in_node_order(hellos)
        except NodesDisagree as error:
            found.append(str(error))
    return list(dict.fromkeys(map(printable, found)))  # words of other machines reach this terminal


def different_settings(master: Hello, hello: Hello) -> list[str]:
    found = []
    for name, todo in TODO.items():
        ours, theirs = master.same.get(name, ""), hello.same.get(name, "")
        if not ours or not theirs or ours == theirs or (name == "--gpu_map" and maps_agree(ours, theirs)):
            continue
        found.append(f"{name}: {ours} on {master.host}, {theirs} on {hello.host}. {todo.format(ours)}")
    return found


def maps_agree(ours: str, theirs: str) -> bool:
    """Whether two nodes mean the same map, where each may call itself localhost.

    >>> maps_agree("alpha=2 localhost=3", "localhost=2 beta=3"), maps_agree("alpha=2 beta=3", "beta=3 alpha=2")
    (True, False)
    """
    pairs = list(zip(ours.split(), theirs.split(), strict=False))
    if len(ours.split()) != len(theirs.split()):
        return False
    for mine, other in pairs:
        (my_host, _, my_gpus), (other_host, _, other_gpus) = mine.rpartition("="), other.rpartition("=")
        if my_gpus != other_gpus or not (my_host == other_host or network.is_loopback(my_host) or network.is_loopback(other_host)):
            return False
    return True


def different_totals(master: Hello, hello: Hello) -> list[str]:
    if master.total is None or hello.total is None or master.total == hello.total:
        return []
    sentence = (
        f"{master.host} counts {master.ranks} GPU{'s' * (master.ranks != 1)} here and {master.others} elsewhere, {master.total} in all; "
        f"{hello.host} counts {hello.ranks} here and {hello.others} elsewhere, {hello.total} in all. "
        f"Correct --other_gpus (or --here_gpus) so that all nodes count the same."
    )
    return [sentence]


def too_many(request: LaunchRequest, hellos: Sequence[Hello]) -> list[str]:
    """Nodes that bring more GPUs than were announced."""
    if request.gpu_map:
        given = dict(enumerate(request.gpu_map.values()))
        return [
            f"{hello.host} brings {hello.ranks} GPUs, and the GPU map gives it {given[hello.node_rank]}. "
            f"Correct the map, or --here_gpus on {hello.host}."
            for hello in hellos
            if hello.node_rank in given and hello.ranks > given[hello.node_rank]
        ]
    if missing_ranks(request, hellos) >= 0:
        return []
    total = hellos[0].total
    return [f"{sum(hello.ranks for hello in hellos)} GPUs came and {total} were announced: {roll_call(hellos)}. Correct --other_gpus."]


def claimed_twice(hellos: Sequence[Hello]) -> list[str]:
    """Nodes with one node rank; the master has 0."""
    holders: dict[int, str] = {0: hellos[0].host}
    found = []
    for hello in hellos[1:]:
        if hello.node_rank is None:
            continue
        if hello.node_rank in holders:
            with_map = hello.same.get("--gpu_map", "none") != "none"
            todo = (
                'Write their names or addresses in the GPU map ("localhost" is each machine itself), or give --host on each.'
                if with_map
                else "Give each node its own --node_rank (0 is the master), or leave it out on all but the master."
            )
            both = " and ".join(sorted((holders[hello.node_rank], hello.host)))
            found.append(f"{both} are both node {hello.node_rank}. {todo}")
        holders.setdefault(hello.node_rank, hello.host)
    return found


def different_words(master: Hello, hello: Hello, send_data: bool) -> list[str]:
    """How the commands differ: the first other word, or files that are missing or have another content."""
    found: list[str] = []
    for number in range(max(len(master.command), len(hello.command))):
        if number >= min(len(master.command), len(hello.command)):
            longer, shorter = (master, hello) if len(master.command) > len(hello.command) else (hello, master)
            return [*found, f'{longer.host} has the argument "{longer.command[number].text}", {shorter.host} does not. {SAME_LINE}']
        ours, theirs = master.command[number], hello.command[number]
        on_both = bool(ours.fingerprint and theirs.fingerprint)
        on_one = ours.fingerprint != theirs.fingerprint and FOLDER not in (ours.fingerprint, theirs.fingerprint) and not on_both
        if ours.text != theirs.text and not ((on_both or on_one) and base(ours.text) == base(theirs.text)):
            return [*found, other_word(master, hello, number)]
        if on_both and ours.fingerprint != theirs.fingerprint:
            found.append(other_content(master, hello, number))
        elif on_one and not (send_data and ours.fingerprint):  # what the master has, it sends once nothing else differs
            found.append(not_there(master, hello, number))
    return found


def other_content(master: Hello, hello: Hello, number: int) -> str:
    ours, theirs = master.command[number], hello.command[number]
    offer = f", or remove it on {hello.host} and add --send_data on every node" if number > 1 else ""
    return (
        f"{base(ours.text)} has another content on {hello.host} ({in_words(theirs.fingerprint)}) than on {master.host} "
        f"({in_words(ours.fingerprint)}). Copy one file to every node{offer}."
    )


def not_there(master: Hello, hello: Hello, number: int) -> str:
    word = master.command[number] if master.command[number].fingerprint else hello.command[number]
    if word is master.command[number]:
        return f"{hello.command[number].text} is not on {hello.host}. Copy it there, or add --send_data on every node to have it sent."
    return f"{master.command[number].text} is not on {master.host}, the master. Copy it there from {hello.host}."


SAME_LINE = "Type the same command on every node."


def other_word(master: Hello, hello: Hello, number: int) -> str:
    ours, theirs = master.command[number].text, hello.command[number].text
    flag = master.command[number - 1].text if number else ""
    after = f" after {flag}" if flag.startswith("-") and not ours.startswith("-") else ""
    return f'The commands differ{after}: "{ours}" on {master.host}, "{theirs}" on {hello.host}. {SAME_LINE}'


def base(word: str) -> str:
    """A word without the folder of the file that it may name: machines keep their files in different places.

    >>> base("/data/a.csv"), base("--data=/data/a.csv"), base("--lr=1e-5")
    ('a.csv', '--data=a.csv', '--lr=1e-5')
    """
    flag, equals, name = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{flag}{equals}{name.rpartition('/')[2] or name}"


def in_words(fingerprint: str) -> str:
    """
    >>> in_words("1200000:3f2a9c01"), in_words("sqlite")
    ('1,200,000 bytes, 3f2a9c', 'a SQLite file')
    """
    size, _, digest = fingerprint.partition(":")
    return f"{int(size):,} bytes, {digest[:6]}" if size.isdigit() else "a SQLite file"
