"""The JSON map of hosts to GPU counts: reading it, and finding this machine in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_train_parallel.errors import BadGpuMap
from bert_train_parallel.launching import network

EXAMPLE = '{"foo.bar.com": 4, "172.12.145.1": 6}'
LONGEST = 253  # characters of a host name
MOST = 4096  # ranks on one machine: more is a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Place:
    """Where this machine stands in a map."""

    gpu_map: dict[str, int]
    node_rank: int

    @property
    def host(self) -> str:
        return list(self.gpu_map)[self.node_rank]

    @property
    def ranks(self) -> int:
        return self.gpu_map[self.host]


def read_gpu_map(source: str) -> dict[str, int]:
    """A map from a JSON file, or from the text of one, in the order of node ranks.

    >>> read_gpu_map('{"foo.bar.com": 4, "[fd00::7]": 1}')
    {'foo.bar.com': 4, 'fd00::7': 1}

    Raises:
        BadGpuMap: not a JSON object of host names to whole numbers from 1 up.
    """
    if source.lstrip().startswith("{"):
        return parse_gpu_map(source, "the GPU map")
    try:
        raw = Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise BadGpuMap(f"{source}: {reason}. Name a JSON file such as {EXAMPLE}, or a number of GPUs with --other_gpus.") from None
    try:
        text = raw.decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError:
        raise BadGpuMap(f"{source} is not UTF-8 text. Save it as plain UTF-8, for example {EXAMPLE}.") from None
    return parse_gpu_map(text, source)


def parse_gpu_map(text: str, source: str) -> dict[str, int]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        hosts = [host for host, _ in pairs]
        for host in hosts:
            if hosts.count(host) > 1:
                raise BadGpuMap(f'{source} lists "{host}" {hosts.count(host)} times. Write each host once, with the sum of its GPUs.')
        return dict(pairs)

    if not text.strip():
        raise BadGpuMap(f"{source} is empty. Write hosts and their GPU counts, for example {EXAMPLE}.")
    try:
        read = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # a plain ValueError is a number of thousands of digits
        where = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        if isinstance(error, json.JSONDecodeError):
            where = f"line {error.lineno}: {error.msg}"
        raise BadGpuMap(f"{source} is not JSON ({where}). Write hosts and their GPU counts, for example {EXAMPLE}.") from None
    if not isinstance(read, dict) or not read:
        what = "an empty object" if read == {} else "null" if read is None else f"a {type(read).__name__}"
        raise BadGpuMap(f"{source} holds {what}, not hosts with GPU counts. Write for example {EXAMPLE}.")
    for host, gpus in read.items():
        check_entry(source, host, gpus)
    hosts = [network.plain(host) for host in read]
    for host in hosts:
        if [other.lower() for other in hosts].count(host.lower()) > 1:
            raise BadGpuMap(f'{source} lists "{host}" in two spellings. Write each host once, with the sum of its GPUs.')
    return dict(zip(hosts, read.values(), strict=True))


def check_entry(source: str, host: str, gpus: Any) -> None:
    if not host.strip(" []") or host != host.strip() or any(letter.isspace() for letter in host):
        raise BadGpuMap(f'{source} has the host "{host}". Write a name or an address without spaces, for example {EXAMPLE}.')
    if host.startswith("-") or not host.isprintable() or len(host) > LONGEST:
        raise BadGpuMap(
            f"{source} has the host {host[:60]!a}. Write a name or an address of at most {LONGEST} characters that does not begin "
            f"with a dash, for example {EXAMPLE}."
        )
    if "@" in host or "/" in host:
        raise BadGpuMap(f'{source} has the host "{host}". Write the name or address alone; --ssh_user gives a user.')
    if network.has_port(host):
        raise BadGpuMap(f'{source} has the host "{host}". Write it without a port: --master_port gives one for all nodes.')
    if isinstance(gpus, bool) or not isinstance(gpus, int) or not 1 <= gpus <= MOST:
        raise BadGpuMap(
            f'{source} gives "{host}" {json.dumps(gpus)[:60]} GPUs. Write how many training processes that machine runs, a '
            f'whole number from 1 up, for example {{"{host}": 2}}. A machine without GPUs takes 1 and trains on its CPU.'
        )


def find_place(
    gpu_map: dict[str, int],
    host: str | None = None,
    node_rank: int | None = None,
    here: int | None = None,
    *,
    names: Iterable[str] | None = None,
    addresses: Iterable[str] | None = None,
    resolve_all: Callable[[Iterable[str]], dict[str, list[str]]] = network.resolve_all,
) -> Place:
    """This machine's place in a map, by `--host`, else by its own names and addresses, else as localhost.

    A machine that the map leaves out, as in a list of the *other* GPUs, is put where `--node_rank` says, with `here` ranks.

    >>> find_place({"alpha": 2, "10.0.0.7": 3}, names={"beta"}, addresses={"127.0.0.1", "10.0.0.7"}).node_rank
    1
    >>> find_place({"alpha": 2, "localhost": 3}, names={"beta"}, addresses={"10.0.0.7"}, resolve_all=lambda hosts: {}).host
    'localhost'

    Raises:
        BadGpuMap: no host of the map is this machine, or more than one.
    """
    hosts = list(gpu_map)
    if host is not None:
        matches = [other for other in hosts if other.lower() == network.plain(host).lower()]
        if not matches:
            raise BadGpuMap(f"--host {host} is not in the GPU map, which has {', '.join(hosts)}. Use one of these names.")
    else:
        matches = matching_hosts(hosts, names, addresses, resolve_all)
    if len(matches) > 1:
        raise BadGpuMap(
            f"{' and '.join(matches)} in the GPU map are all this machine. Keep one of them, or say which is meant with --host."
        )
    if matches:
        found = hosts.index(matches[0])
        if node_rank not in (None, found):
            raise BadGpuMap(
                f"--node_rank {node_rank} is {hosts[node_rank] if 0 <= node_rank < len(hosts) else 'nobody'} in the GPU map, and this "
                f"machine is {matches[0]}, node {found}. Leave --node_rank out, or correct the map."
            )
        return Place(gpu_map, found)
    if node_rank is None or here is None:
        own = ", ".join(
            sorted({*(names or network.own_names()), *(a for a in addresses or network.own_addresses() if not network.is_loopback(a))})
        )
        named = [host for host in hosts if not network.is_loopback(host)]
        unknown = [host for host, found in resolve_all(named).items() if not found]
        no_address = f" (no address was found for {', '.join(unknown)})" if unknown else ""
        raise BadGpuMap(
            f"This machine ({own}) is not in the GPU map, which has {', '.join(hosts)}{no_address}. Add it, say which of them it is with "
            f"--host, or give its place and size with --node_rank and --here_gpus."
        )
    if not 0 <= node_rank <= len(hosts):
        raise BadGpuMap(f"--node_rank {node_rank} with {len(hosts)} other hosts in the GPU map: use 0 to {len(hosts)}.")
    entries = list(gpu_map.items())
    entries.insert(node_rank, ("localhost", here))
    return Place(dict(entries), node_rank)


def matching_hosts(
    hosts: list[str],
    names: Iterable[str] | None,
    addresses: Iterable[str] | None,
    resolve_all: Callable[[Iterable[str]], dict[str, list[str]]],
) -> list[str]:
    """The hosts of a map that are this machine; "localhost" counts only where no other name does."""
    own_names = set(names) if names is not None else network.own_names()
    own = {address for address in (addresses if addresses is not None else network.own_addresses()) if not network.is_loopback(address)}
    elsewhere = [host for host in hosts if not network.is_loopback(host)]
    direct = [host for host in elsewhere if network.bare(host) in own or host.lower() in own_names]
    resolved = resolve_all(host for host in elsewhere if host not in direct)  # an alias may be this machine as well
    found = [host for host in elsewhere if host in direct or own & {network.bare(address) for address in resolved.get(host, [])}]
    return found or [host for host in hosts if network.is_loopback(host)]
