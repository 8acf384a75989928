"""What this node says of itself: its GPUs, its versions, and its command with every file reduced to a fingerprint."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bert_train_parallel.launching import network
from bert_train_parallel.launching.plan import FOLDER, Hello, LaunchRequest, Word

WHOLE = 64 << 20  # bytes: larger files are fingerprinted by samples, so that a hello never waits for a disk
PIECES, PIECE = 64, 1 << 20
# flags whose file is written, not read: what an earlier run left there does not matter
WRITTEN = re.compile(r"log|out|save|write|result|report|checkpoint|ckpt|cache|te?mp|profile|trace", re.IGNORECASE)


def make_hello(request: LaunchRequest, ranks: int, devices: tuple[str, ...], problem: str = "") -> Hello:
    """The hello of this node; the master adds a port for the ranks' store."""
    return Hello(
        host=own_host(request),
        ranks=ranks,
        others=None if request.gpu_map else request.others,
        node_rank=request.node_rank,
        devices=devices,
        same={
            "--gpu_map": " ".join(f"{host}={gpus}" for host, gpus in (request.gpu_map or {}).items()) or "none",
            "--max_restarts": str(request.max_restarts),
            "--elastic": "yes" if request.elastic else "no",
            "--check": "yes" if request.check else "no",
            "--send_data": "yes" if request.send_data else "no",
            **versions(),
        },
        command=words(request.command, request.folder),
        problem=problem,
    )


def own_host(request: LaunchRequest) -> str:
    """This node's name, for its own lines and for the other nodes' messages."""
    if request.host:
        return request.host
    if request.gpu_map and request.node_rank is not None:
        named = list(request.gpu_map)[request.node_rank]
        if not network.is_loopback(named):
            return named
    return os.uname().nodename


def versions() -> dict[str, str]:
    """Versions that must be equal on every node; empty where a package is not installed.

    Read from the packages' metadata: importing torch would take a second. The build after the plus does not count, so that
    a node without a GPU can have the CPU build of the same torch.
    """

    def version(package: str) -> str:
        try:
            return metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            return ""

    # transformers says what a model is made of: other nodes make the same one and are sent its values
    packages = ("bert-train-parallel", "torch", "transformers")
    nccl = next((found for found in map(version, ("nvidia-nccl-cu13", "nvidia-nccl-cu12")) if found), "")
    return {package: version(package) for package in packages} | {"NCCL": nccl}


def words(command: tuple[str, ...], folder: str) -> tuple[Word, ...]:
    """The command as it is compared between nodes."""
    result = []
    for number, text in enumerate(command):
        if number == 0 and re.fullmatch(r"python[0-9.]*", os.path.basename(text)):
            result.append(Word("python"))  # it may live elsewhere on another machine; the versions are compared instead
        elif text.startswith("-") and "=" not in text:
            result.append(Word(text))
        else:
            path = file_of(text, folder)
            mark = FOLDER if os.path.isdir(path) else "" if is_written(command, number) else fingerprint(path)
            result.append(Word(text, mark))
    return tuple(result)


def file_of(word: str, folder: str) -> Path:
    """The file that a word may name: `data.csv`, or the end of `--data=data.csv`; relative to the ranks' folder.

    >>> file_of("--data=texts/a.csv", "/work").as_posix(), file_of("a.csv", "/work").as_posix()
    ('/work/texts/a.csv', '/work/a.csv')
    """
    name = word.partition("=")[2] if word.startswith("-") else word
    return Path(folder, os.path.expanduser(name)) if name else Path(folder)


def is_written(command: tuple[str, ...], number: int) -> bool:
    """Whether a word names a file that the program writes, by the name of its flag.

    >>> command = ("python", "train.py", "--data", "a.csv", "--log_file", "b.txt", "--output=c.csv", "log.csv")
    >>> [word for number, word in enumerate(command) if is_written(command, number)]
    ['b.txt', '--output=c.csv']
    """
    word = command[number]
    if word.startswith("-") and "=" in word:
        return WRITTEN.search(word.partition("=")[0]) is not None
    before = command[number - 1] if number else ""
    return before == "-f" or (before.startswith("--") and "=" not in before and WRITTEN.search(before) is not None)


def fingerprint(path: Path) -> str:
    """`size:hash` of a file's content; empty where there is no file.

    Files up to 64 MiB are hashed whole; of larger ones 64 pieces of 1 MiB, evenly spread, with the first and the last,
    and the size. A SQLite file is known by its presence alone: notes of runs are added to it, and those who read it compare
    its content.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with open(path, "rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                return "sqlite"
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.blake2b(digest_size=8)
            for start, length in pieces(size):
                file.seek(start)
                digest.update(file.read(length))
    except (OSError, ValueError):  # a word that is no path at all: too long, or with a null character
        return ""
    return f"{size}:{digest.hexdigest()}"


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Start and length of the parts of a file that make its fingerprint.

    >>> list(pieces(10)), len(list(pieces(10 << 30)))
    ([(0, 10)], 64)
    """
    if size <= WHOLE:
        yield 0, size
        return
    for number in range(PIECES):
        yield (size - PIECE) * number // (PIECES - 1), PIECE
