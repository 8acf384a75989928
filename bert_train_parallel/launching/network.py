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
from collections.abc import Iterable, Mapping

from bert_train_parallel.errors import Unreachable

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


def own_names() -> set[str]:
    """The names this machine calls itself, in lower case."""
    name = socket.gethostname().lower()
    return {name, name.split(".")[0], socket.getfqdn().lower()}


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


def resolve(host: str, given_by: str = "") -> list[str]:
    """The addresses of a host, in the system's order; `given_by` is the flag that a user would correct.

    Raises:
        Unreachable: the name is unknown; said at once, since waiting does not change it.
    """
    try:
        answers = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = (error.strerror or "") if isinstance(error, socket.gaierror) else "not a host name"
        raise Unreachable(
            f"{host!r} has no address ({reason.lower()}). Check the spelling{f' in {given_by}' if given_by else ''}, add it to "
            f"/etc/hosts, or give the IP address."
        ) from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def resolve_all(hosts: Iterable[str], within_s: float = 3.0) -> dict[str, list[str]]:
    """The addresses of several hosts at once; none for a name that is unknown, or whose name server is slow."""
    found: dict[str, list[str]] = {host: [] for host in hosts}

    def look_up(host: str) -> None:
        try:
            found[host] = resolve(host)
        except Unreachable:
            pass  # the caller looks for a match; a name that does not resolve is none

    # daemon threads: a name server that does not answer blocks getaddrinfo for longer than anyone should wait
    threads = [threading.Thread(target=look_up, args=(host,), daemon=True) for host in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(within_s)
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
