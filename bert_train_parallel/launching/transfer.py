"""`--send_data`: a file of the master's command, copied over the control channel to a node that lacks it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path

from bert_train_parallel.errors import NodesDisagree, NotWritable
from bert_train_parallel.launching import wire
from bert_train_parallel.launching.compare import different_words
from bert_train_parallel.launching.plan import FOLDER, Hello
from bert_train_parallel.run_files import written_aside

PIECE = 1 << 20
STALLED_AFTER_S = 30.0


def lacking(master: Hello, hello: Hello) -> list[int]:
    """Which words of the command name a file on the master and none on the other node.

    >>> from bert_train_parallel.launching.plan import Word
    >>> script = Word("t.py", "9:a1")
    >>> lacking(Hello("alpha", 1, command=(script, Word("x.csv", "8:b2"))), Hello("beta", 1, command=(script, Word("x.csv"))))
    [1]
    """
    if len(master.command) != len(hello.command):
        return []
    pairs = enumerate(zip(master.command, hello.command, strict=True))
    # nothing is written for a node whose command is another one in any way, a file name with a slip of the keyboard among them
    if different_words(master, hello, send_data=True):
        return []
    return [number for number, (ours, theirs) in pairs if ours.fingerprint not in ("", FOLDER) and not theirs.fingerprint]


async def send_file(writer: asyncio.StreamWriter, path: Path) -> None:
    """The file's size, its bytes, and their hash at the end."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        writer.write(wire.encode({"kind": "file", "size": left}))
        while left:
            piece = await asyncio.to_thread(file.read, min(left, PIECE))
            if not piece:
                raise EOFError  # the file was cut while it was sent: the other side sees the connection end and says so
            digest.update(piece)
            left -= len(piece)
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), STALLED_AFTER_S)
    writer.write(wire.encode({"kind": "sent", "sha256": digest.hexdigest()}))
    await asyncio.wait_for(writer.drain(), STALLED_AFTER_S)


async def receive_file(reader: asyncio.StreamReader, path: Path) -> int:
    """Write what `send_file` sends, aside, and give it its name when the hash is right; returns its size in bytes.

    Raises:
        NotWritable: no room, or a forbidden place.
        NodesDisagree: the master does not send it, or the connection ended before the file did.
    """
    try:
        announced = await wire.read(reader, STALLED_AFTER_S)
        size = announced.get("size")
        if announced["kind"] != "file" or not isinstance(size, int) or size < 0:
            raise NodesDisagree(str(announced.get("words", "the master does not send it")))
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
        if size > free:
            raise NotWritable(f"{path} needs {size:,} bytes, and {free:,} are free there. Free some, or start in another folder.")
        digest = hashlib.sha256()
        with written_aside(path) as aside:
            with open(aside, "wb") as file:
                left = size
                while left:
                    piece = await asyncio.wait_for(reader.read(min(left, PIECE)), STALLED_AFTER_S)
                    if not piece:
                        raise EOFError
                    digest.update(piece)
                    left -= len(piece)
                    await asyncio.to_thread(file.write, piece)
            sent = await wire.read(reader, STALLED_AFTER_S)
            if sent.get("sha256") != digest.hexdigest():
                raise NodesDisagree(f"{path.name} arrived damaged from the master. Start again, or copy it by hand.")
    except NotWritable as error:
        if not isinstance(error.__cause__, OSError):
            raise
        reason = (error.__cause__.strerror or str(error.__cause__)).lower()
        raise NotWritable(f"{path} cannot be written ({reason}). Start in a folder with room that can be written.") from None
    except (EOFError, TimeoutError, ConnectionError, wire.NotOurs):
        raise NodesDisagree(f"{path.name} did not arrive whole from the master. Start again, or copy it by hand.") from None
    return size
