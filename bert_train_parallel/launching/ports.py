"""TCP ports of this machine: a free one, and who holds a taken one. Light, since every launch needs one."""

from __future__ import annotations

import errno
import os
import socket

from bert_train_parallel.errors import BadSetting, Unreachable


def free_port() -> int:
    """A TCP port that nothing listens on, below the range from which the system serves outgoing connections."""
    for _ in range(200):
        port = 20_000 + int.from_bytes(os.urandom(4)) % 12_000
        try:
            with socket.create_server(("", port)):
                return port
        except OSError:
            continue
    raise Unreachable("No free TCP port between 20000 and 32000 on this machine. End what holds them, or reboot.")


def checked_port(port: int, flag: str = "--master_port") -> int:
    """A port that was asked for, if nothing listens on it.

    Raises:
        BadSetting: something does, or this user may not.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno == errno.EACCES:
            raise BadSetting(f"{flag} {port}: only root may listen on ports below 1024. Give a higher one.") from None
        raise port_taken(port, flag) from None
    return port


def port_taken(port: int, flag: str = "--master_port") -> BadSetting:
    """The sentence for a port that something else holds, with its name where this user may see it."""
    holder = holder_of(port)
    return BadSetting(
        f"port {port} of this machine is taken{f' by {holder}' if holder else ''}. If that is an earlier launch, end it; "
        f"else give every node another one, for example {flag} {port + 1 if port < 65535 else port - 1}."
    )


def holder_of(port: int) -> str:
    """`name (process id)` of the process that listens on a port; empty where the system does not tell."""
    from pathlib import Path

    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        inodes |= {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == port}
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        try:
            if os.readlink(link) in inodes:
                return f"{(link.parent.parent / 'comm').read_text().strip()} (process {link.parent.parent.name})"
        except OSError:
            continue  # closed or ended meanwhile, or another user's
    return ""
