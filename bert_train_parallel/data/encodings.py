"""In which encoding the text of a file stands, and whether it is text at all."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from bert_train_parallel.errors import BadSource

_CHUNK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF16 = ("utf-16-le", "utf-16-be")
_CONTROLS = [code for code in range(1, 32) if code not in (9, 10, 11, 12, 13, 27)]  # bytes that text does not have
_MAGIC = (
    (b"PK\x03\x04", "a zip archive or an Excel file", "save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save it as CSV"),
    (b"%PDF", "a PDF", "save its table as CSV"),
    (b"BZh", "compressed by bzip2", "type: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "type: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "type: unzstd"),
    (b"SQLite format 3", "an SQLite file", "give it the ending .sqlite if it is a store of ours"),
)


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file whose text can be read: how to open it, and what to say of it."""

    path: Path
    encoding: str
    replaced: int = 0  # broken bytes that are read as U+FFFD
    remark: str = ""  # what the user should know of the encoding; empty when it is as expected

    def open(self) -> IO[str]:
        """The text, with line ends as they are."""
        errors = "replace" if self.replaced else "strict"
        return io.TextIOWrapper(_open_bytes(self.path), encoding=self.encoding, errors=errors, newline="")


def survey(path: Path, encoding: str = "auto") -> TextFile:
    """Find the encoding of a text file, by its beginning and one pass over it; or check the one that is given.

    Raises:
        BadSource: empty, binary, or not in the encoding that was given; the sentence names the line.
    """
    try:
        with _open_bytes(path) as file:
            beginning = file.read(1 << 16)
        if not beginning:
            raise BadSource(f"{path} is empty. A header line and lines of texts and labels are expected.")
        if encoding != "auto":
            return _given(path, encoding)
        marked = next((name for mark, name in _BOMS if beginning.startswith(mark)), None) or _utf16_without_mark(beginning)
        if marked:
            return _given(path, marked, asked=False)
        _refuse_binary(path, beginning)
        broken, whole, first, codes = _utf8_errors(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadSource(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise BadSource(f"{path} cannot be read: {error.strerror or error}.") from None
    if not broken:
        return TextFile(path, "utf-8")
    if whole > broken:  # a letter of two bytes or more comes about by chance in few places of any other encoding
        remark = f"bytes that are not UTF-8 ({broken}, the first in line {first}) are read as U+FFFD"
        return TextFile(path, "utf-8", broken, remark)
    name = "latin-1" if codes & {0x81, 0x8D, 0x8F, 0x90, 0x9D} else "cp1252"
    return TextFile(path, name, 0, f"not UTF-8 (the first such byte in line {first}): read as {name}; another one by --encoding")


def _open_bytes(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path) if zipped else open(path, "rb")  # noqa: SIM115 - whoever asked for it closes it
    return cast(IO[bytes], opened)


def _chunks(path: Path) -> Iterator[bytes]:
    with _open_bytes(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _given(path: Path, encoding: str, asked: bool = True) -> TextFile:
    """The encoding that was asked for, or that the file's beginning shows, if the whole file is in it."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        "".encode(encoding)
    except (LookupError, UnicodeError, TypeError):
        raise BadSource(f"--encoding {encoding} is not known. Type utf-8, utf-16, latin-1, cp1252, or another that Python knows.") from None
    lines = 1
    try:
        for chunk in _chunks(path):
            text = decoder.decode(chunk)
            _refuse_nul(path, text, lines)
            lines += text.count("\n")
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        good = getattr(error, "object", b"")[: getattr(error, "start", 0)]
        lines += good.decode(encoding, "ignore").count("\n") if isinstance(good, bytes) else 0
        hint = "Leave --encoding out to have it found, or name another." if asked else "The file is damaged or cut short there."
        why = "" if asked else ", as its beginning is"
        raise BadSource(f"{path}, line {lines}: not {encoding.removesuffix('-sig')}{why}. {hint}") from None
    return TextFile(path, encoding)


def _utf16_without_mark(beginning: bytes) -> str | None:
    """UTF-16 that does not say so.

    Every other byte of Western text is zero. Other scripts show themselves by a zero in the ends of lines, where all
    else can be shown; text of single bytes with a zero somewhere is not taken for them.
    """
    codes = np.frombuffer(beginning[: len(beginning) // 2 * 2], np.uint8).reshape(-1, 2) == 0
    if len(codes) < 2 or not codes.any():
        return None
    high, low = codes.mean(axis=0)
    if max(high, low) >= 0.7 and min(high, low) <= 0.1:
        return "utf-16-le" if low > high else "utf-16-be"
    return None if _is_of_bytes(beginning.replace(b"\0", b"")) else next(filter(partial(_can_be_shown, beginning), _UTF16), None)


def _is_of_bytes(text: bytes) -> bool:
    """Whether letters of one byte each, or UTF-8, are what bytes look like."""
    controls = _controls(text)
    if controls + sum(text.count(code) for code in range(0x80, 0x100)) <= len(text) / 10:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)  # may be cut within a letter
    except UnicodeError:
        return False
    return controls <= len(text) / 20


def _can_be_shown(beginning: bytes, encoding: str) -> bool:
    """Whether bytes are lines of letters in an encoding, and hardly anything else."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeError:
        return False
    hidden = sum(not letter.isprintable() and not letter.isspace() for letter in text)
    return ("\n" in text or "\r" in text) and hidden <= len(text) / 100


def _controls(text: bytes) -> int:
    return sum(map(text.count, _CONTROLS))


def _refuse_binary(path: Path, beginning: bytes) -> None:
    for magic, what, todo in _MAGIC:
        if beginning.startswith(magic):
            raise BadSource(f"{path} is {what}; a text file is expected: {todo}.")
    if beginning.count(0) + _controls(beginning) > len(beginning) / 20:
        raise BadSource(
            f"{path} is a binary file; a CSV, JSON lines or Parquet file is expected. For text, name its --encoding, such as utf-16-le."
        )


def _refuse_nul(path: Path, text: str, line: int) -> None:
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise BadSource(f"{path}, line {line}: a NUL byte; a text file is expected. Remove it, or name the --encoding of the file.")


def _utf8_errors(path: Path) -> tuple[int, int, int, set[int]]:
    """Broken bytes, letters beyond ASCII that are whole, line of the first broken byte, and all byte values beside ASCII."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    broken = whole = first = 0
    lines = 1
    codes: set[int] = set()
    for chunk in _chunks(path):
        text = decoder.decode(chunk)
        _refuse_nul(path, text, lines)
        if not chunk.isascii():
            codes |= set(np.unique(np.frombuffer(chunk, np.uint8)).tolist())
            in_text = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
            wrong = np.flatnonzero((in_text >= 0xDC80) & (in_text <= 0xDCFF))
            if len(wrong) and not broken:
                first = lines + text.count("\n", 0, int(wrong[0]))
            broken += len(wrong)
            whole += int(np.count_nonzero(in_text >= 0x80)) - len(wrong)
        lines += text.count("\n")
    if decoder.getstate()[0]:
        broken, first = broken + 1, first or lines
    return broken, whole, first, codes
