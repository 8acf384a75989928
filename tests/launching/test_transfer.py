"""A file that is sent arrives whole under its name, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from bert_train_parallel.errors import NodesDisagree, NotWritable
from bert_train_parallel.launching import wire
from bert_train_parallel.launching.transfer import receive_file

CONTENT = bytes(range(256)) * 1000
HEAD = wire.encode({"kind": "file", "size": len(CONTENT)})
TAIL = wire.encode({"kind": "sent", "sha256": hashlib.sha256(CONTENT).hexdigest()})


def receive(path: Path, *sent: bytes) -> int:
    async def run() -> int:
        reader = asyncio.StreamReader(limit=wire.LINE_LIMIT)
        for piece in sent:
            reader.feed_data(piece)
        reader.feed_eof()
        return await receive_file(reader, path)

    return asyncio.run(run())


def test_a_file_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a.csv"
    assert receive(path, HEAD, CONTENT, TAIL) == len(CONTENT)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "sent",
    [
        (HEAD, CONTENT[:-1]),
        (HEAD, CONTENT),
        (HEAD, CONTENT[:-1] + b"x", TAIL),
        (HEAD, CONTENT, wire.encode({"kind": "sent", "sha256": ""})),
        (wire.encode({"kind": "file", "size": -1}),),
        (wire.encode({"kind": "file", "size": "9"}),),
        (wire.encode({"kind": "refused", "words": "no such file"}),),
        (b"\xff\xfe garbage\n",),
        (),
    ],
)
def test_what_does_not_arrive_whole_leaves_nothing(tmp_path: Path, sent: tuple[bytes, ...]) -> None:
    with pytest.raises(NodesDisagree):
        receive(tmp_path / "a.csv", *sent)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_no_room_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(NotWritable, match=r"needs 1,000,000,000,000,000,000 bytes"):
        receive(tmp_path / "a.csv", wire.encode({"kind": "file", "size": 10**18}))
