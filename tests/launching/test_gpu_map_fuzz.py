"""The reader of GPU maps against made-up text: a map or one of our sentences, never another error.

A few hundred cases each run with every suite; BERT_TRAIN_FUZZ=10000 runs as many as it says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bert_train_parallel.errors import BadGpuMap, one_line
from bert_train_parallel.launching.gpu_map import MOST, read_gpu_map

CASES = int(os.environ.get("BERT_TRAIN_FUZZ", "200"))
PIECES = [
    *('{"', '{"', '"}', '": 2', '": 2', '", "', ', "', "alpha", "beta", "10.0.0.7", "fd00::7", "[fd00::7]", "[", "]", "{", "}", ":", ","),
    *("0", "-1", "1e400", "NaN", "true", "null", "9" * 5_000, " ", "\n", "\\", "\\ud83d", "\0", "\ufeff", "%eth0", "@", "/", ":29500", "ß"),
]
hosts = st.one_of(st.sampled_from(["alpha", "ALPHA", "10.0.0.7", "[fd00::7]", "fd00:0::7", "[", "::", "a:1"]), st.text(max_size=8))
counts = st.one_of(st.integers(), st.integers(1, 8), st.floats(), st.booleans(), st.none(), st.text(max_size=4), st.lists(st.integers()))
maps = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    st.dictionaries(hosts, counts, max_size=4).map(json.dumps),
    st.dictionaries(hosts, st.integers(1, 8), min_size=1, max_size=3).map(lambda read: json.dumps(read, ensure_ascii=False)),
    st.text(max_size=40),
)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(maps.map(lambda text: text.encode(errors="surrogatepass")), st.binary(max_size=60)))
@example(b'{"alpha": ' + b"9" * 5_000 + b"}")
@example(b'{"alpha": ' + b"[" * 100_000)
@example(b'{"\\ud83d": 1}')
def test_any_bytes_are_a_map_or_a_sentence(tmp_path: Path, content: bytes) -> None:
    try:
        path = tmp_path / "gpus.json"
        path.write_bytes(content)
        read = read_gpu_map(str(path))
    except BadGpuMap as error:
        one_line(str(error)).encode()
        return
    assert read
    assert all(type(gpus) is int and 1 <= gpus <= MOST for gpus in read.values())
    assert all(host and not any(letter.isspace() for letter in host) for host in read)
    " ".join(read).encode()  # may be printed


@settings(max_examples=CASES, deadline=None)
@given(maps)
def test_any_words_on_the_command_line_are_a_map_or_a_sentence(words: str) -> None:
    try:
        read = read_gpu_map(words)
    except BadGpuMap as error:
        one_line(str(error)).encode()
        return
    assert read
