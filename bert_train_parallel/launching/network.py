"""Addresses, interfaces and ports of this machine, and in words why another one cannot be reached."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from bert_train_parallel.errors import Unreachable

NAME_WITHIN_S, FULL_NAME_WITHIN_S = 1.2, 0.5  # for a name server to answer: together less than the 3 s in which a user is told
CARRIER_GRADE = ipaddress.ip_network("100.64.0.0/10")  # private in practice (Tailscale, cloud networks), not by is_private


class _SockAddr(ctypes.Structure):
    if sys.platform == "darwin":
        _fields_ = [("length", ctypes.c_uint8), ("family", ctypes.c_uint8), ("data", ctypes.c_uint8 * 26)]
    else:
        _fields_ = [("family", ctypes.c_uint16), ("data", ctypes.c_uint8 * 26)]


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
]


@functools.cache
def own_addresses() -> dict[str, str]:
    """Every address of this machine, with the interface that has it; asked of the kernel, never of the internet."""
    libc = ctypes.CDLL(ctypes.util.find_library("c") if sys.platform == "darwin" else None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found: dict[str, str] = {}
    try:
        entry = first
        while entry:
            address = entry.contents.address
            if address and address.contents.family == socket.AF_INET:
                found.setdefault(socket.inet_ntop(socket.AF_INET, bytes(address.contents.data[2:6])), os.fsdecode(entry.contents.name))
            elif address and address.contents.family == socket.AF_INET6:
                found.setdefault(socket.inet_ntop(socket.AF_INET6, bytes(address.contents.data[6:22])), os.fsdecode(entry.contents.name))
            entry = entry.contents.next
    finally:
        libc.freeifaddrs(first)
    return found


class SilentNameServer(Unreachable):
    """A name whose address is not known yet: the name server has not answered, and may still do."""


class _LookUp(threading.Thread):
    """One question to the system's resolver, which may block it for half a minute and more; a daemon, so that no exit waits for it."""

    def __init__(self, ask: Callable[[], list[str]]) -> None:
        super().__init__(daemon=True, name="look-up")
        self.ask = ask
        self.found: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = self.ask()
        except Exception as error:  # raised where the answer is waited for
            self.error = error


_asked: dict[str, _LookUp] = {}  # questions without an answer so far: asking again waits on, rather than in one more thread
_asking = threading.Lock()


def _forget_questions() -> None:
    """In a forked child, which has none of the threads that would answer."""
    global _asking
    _asking = threading.Lock()
    _asked.clear()


os.register_at_fork(after_in_child=_forget_questions)


def _look_up(name: str, ask: Callable[[], list[str]], within_s: float) -> list[str] | None:
    """What a resolver says, or None while it says nothing."""
    with _asking:
        question = _asked.get(name)
        if question is None:
            question = _asked[name] = _LookUp(ask)
            question.start()
    question.join(within_s)
    if question.is_alive():
        return None
    with _asking:
        if _asked.get(name) is question:
            del _asked[name]
    if question.error is not None:
        raise question.error
    return question.found


def own_names() -> set[str]:
    """The names this machine calls itself, in lower case."""
    name = socket.gethostname().lower()
    full = _look_up("own name", lambda: [socket.getfqdn()], FULL_NAME_WITHIN_S) or [name]
    return {name, name.split(".")[0], full[0].lower()}


def plain(host: str) -> str:
    """A host as it is looked up and shown: like `bare`, with the zone of an address that means nothing without it.

    >>> plain("[fe80::1%eth0]"), plain("FD00:0::7"), plain("alpha")
    ('fe80::1%eth0', 'fd00::7', 'alpha')
    """
    zone = host.strip("[]").partition("%")[2]
    return f"{bare(host)}%{zone}" if zone else bare(host)


def bare(address: str) -> str:
    """An address without its zone, and an IPv4 address out of its IPv6 form.

    >>> bare("fe80::1%eth0"), bare("::ffff:10.0.0.2"), bare("[fd00::1]")
    ('fe80::1', '10.0.0.2', 'fd00::1')
    """
    text = address.strip("[]").split("%")[0]
    try:
        number = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return str(mapped or number)


def is_loopback(host: str) -> bool:
    """Whether a name or address means the machine that reads it.

    >>> [is_loopback(host) for host in ("localhost", "127.0.1.1", "::1", "10.0.0.1", "alpha")]
    [True, True, True, False, False]
    """
    if host.lower() in ("localhost", "localhost.localdomain", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return False


def has_port(host: str) -> bool:
    """Whether a host is written with a port.

    >>> [has_port(host) for host in ("alpha:29500", "[fd00::7]:29500", "fd00::7", "[fd00::7]", "alpha")]
    [True, True, False, False, False]
    """
    return host.count(":") == 1 or "]:" in host


def is_private(address: str) -> bool:
    """Whether an address is reached from inside one network only.

    >>> [is_private(address) for address in ("10.1.2.3", "100.64.0.7", "fd00::1", "8.8.8.8", "2606:4700::1111")]
    [True, True, True, False, False]
    """
    number = ipaddress.ip_address(bare(address))
    return number.is_private or number.is_loopback or number.is_link_local or (number.version == 4 and number in CARRIER_GRADE)


def is_own(address: str) -> bool:
    return is_loopback(address) or bare(address) in own_addresses()


def resolve(host: str, given_by: str = "", within_s: float = NAME_WITHIN_S) -> list[str]:
    """The addresses of a host, in the system's order; `given_by` is the flag that a user would correct.

    Raises:
        SilentNameServer: no answer in time; asking again may bring it.
        Unreachable: the name is unknown; said at once, since waiting does not change it.
    """

    def ask() -> list[str]:
        answers = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(answer[4][0]) for answer in answers))

    try:
        found = _look_up(host, ask, within_s)
    except (socket.gaierror, UnicodeError) as error:
        reason = (error.strerror or "") if isinstance(error, socket.gaierror) else "not a host name"
        raise Unreachable(
            f"{host!r} has no address ({reason.lower()}). Check the spelling{f' in {given_by}' if given_by else ''}, add it to "
            f"/etc/hosts, or give the IP address."
        ) from None
    if found is None:
        raise SilentNameServer(
            f"the name server does not answer for {host!r}{f' ({given_by})' if given_by else ''}: give the IP address, or add the name to "
            f"/etc/hosts"
        )
    return found


def resolve_all(hosts: Iterable[str], within_s: float = NAME_WITHIN_S) -> dict[str, list[str]]:
    """The addresses of several hosts at once; none for a name that is unknown, or whose name server is slow."""
    found: dict[str, list[str]] = {host: [] for host in hosts}

    def look_up(host: str) -> None:
        try:
            found[host] = resolve(host, within_s=within_s)
        except Unreachable:
            pass  # the caller looks for a match; a name that does not resolve is none

    threads = [threading.Thread(target=look_up, args=(host,), daemon=True) for host in found]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline + 0.1 - time.monotonic()))
    return dict(found)


def interface_environ(own_address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The interface that the ranks of several nodes talk over: the one by which this node reaches the others.

    gloo and NCCL would choose one by host name, which may be 127.0.0.1 of every machine. What the user has set stays.
    """
    interface = own_addresses().get(bare(own_address))
    if interface is None:
        return {}
    return {name: interface for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in environ}


def why_unreachable(error: OSError, host: str, port: int) -> str:
    """Why a connection failed, and what to look at, in one sentence.

    >>> why_unreachable(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "alpha", 29500)
    'alpha refuses connections on port 29500: launch.py has not started there, or uses another --master_port'
    """
    if isinstance(error, ConnectionRefusedError):
        return f"{host} refuses connections on port {port}: launch.py has not started there, or uses another --master_port"
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"{host} cannot be reached from here ({os.strerror(error.errno)}): check the address and that the machine is up"
    if isinstance(error, TimeoutError):
        return f"{host} does not answer on port {port}: the machine is down, the address is wrong, or a firewall drops the port"
    if isinstance(error, ConnectionError):
        return f"{host} closed the connection on port {port} before it said anything: is a launch ending there?"
    return f"{host}, port {port}: {error.strerror or error}"
