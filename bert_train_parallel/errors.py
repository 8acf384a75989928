"""What can go wrong, as a family.

BertTrainParallelError            a sentence for the user; the command prints it and exits with `exit_code`
├── BadSetting                    a flag or a setting of a JSON file (exit 2, as all here but the last two)
│   └── BadGpuMap                 GPU counts that cannot be: a JSON map, --here_gpus, --other_gpus
├── BadSource                     the file or data set named as input
│   └── BadStore                  a .sqlite file that is not a finished store of ours
│       └── DamagedStore          a store of ours that can no longer be read, and may be built anew
├── BadModel                      a model, tokenizer or label list that cannot be loaded
├── BadCheckpoint                 a checkpoint that is damaged, or of another run
├── BadRun                        result files that are missing or do not fit together
├── MissingPackage                an optional package, with its install line
├── Unreachable                   a node, port or server that does not answer
├── NodesDisagree                 nodes of one launch that were asked for different things
├── NotWritable                   a read-only folder, a full disk
├── LaunchFailed                  a rank or a node failed; carries the exit code of the first failure
└── TrainingStopped               the data or settings made training impossible
    ├── LossIsNaN                 exit 3
    ├── OutOfMemory               exit 4
    └── StoppedBySignal           exit 128 + the signal, as a shell says it

Anything else that is raised is a mistake of ours and keeps its traceback (exit 1).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable


class BertTrainParallelError(Exception):
    """A sentence for the user: what we read, what we expected, what to type now."""

    exit_code = 2
    kind = "usage"
    was_said = False  # printed already, by a command that has more to do before it ends


class BadSetting(BertTrainParallelError):
    """A flag, or a setting of a JSON file, has a value that cannot be used."""


class BadGpuMap(BadSetting):
    """GPU counts that cannot be: a JSON map, `--here_gpus` or `--other_gpus`."""


class BadSource(BertTrainParallelError):
    """The input cannot be read as samples."""


class BadStore(BadSource):
    """A `.sqlite` file is not a finished store of ours, or not for these settings."""


class DamagedStore(BadStore):
    """A store of ours is cut short, damaged or of another format; it may be built anew in its place."""


class BadModel(BertTrainParallelError):
    """A model, its tokenizer or its label names cannot be loaded."""


class BadCheckpoint(BertTrainParallelError):
    """A checkpoint is damaged, or belongs to another run."""


class BadRun(BertTrainParallelError):
    """Result files of a run are missing, incomplete or do not fit together."""


class MissingPackage(BertTrainParallelError):
    """An optional package is needed here; the sentence has its install line."""


class Unreachable(BertTrainParallelError):
    """A node, a port or a server does not answer."""


class NodesDisagree(BertTrainParallelError):
    """Nodes of one launch were asked for different things."""


class NotWritable(BertTrainParallelError):
    """The place for a result cannot be written: read-only, or full."""


class LaunchFailed(BertTrainParallelError):
    """A rank or a node failed; `exit_code` is that of the first failure."""

    kind = "error"

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class TrainingStopped(BertTrainParallelError):
    """Training cannot go on with this data and these settings; results so far are intact."""

    exit_code = 3
    kind = "stopped"


class LossIsNaN(TrainingStopped):
    """The loss is no longer a number."""

    kind = "nan"


class OutOfMemory(TrainingStopped):
    """The device has no room for the work of one step."""

    exit_code = 4
    kind = "oom"


class StoppedBySignal(TrainingStopped):
    """The process was asked to end, and has saved what it could."""

    def __init__(self, sentence: str, exit_code: int = 143) -> None:
        super().__init__(sentence, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_PLACE = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}  # a file where a folder should be, and the like


def not_writable(error: OSError, path: str | os.PathLike[str], flag: str = "--output_dir") -> NotWritable | None:
    """The sentence for a full disk, a forbidden place or one that cannot be; None when the error is something else.

    Args:
        flag: that names another place.

    >>> str(not_writable(OSError(errno.ENOSPC, "No space left on device"), "/data/run"))
    '/data/run: no space left on device. Free some, or name another place with --output_dir.'
    >>> str(not_writable(FileNotFoundError(errno.ENOENT, "No such file or directory"), "/no/such/log.txt", "--logfile"))
    '/no/such/log.txt: its folder is not there. Name another place with --logfile.'
    """
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return NotWritable(f"{path}: {reason}. Free some, or name another place with {flag}.")
    if error.errno in _FORBIDDEN:
        return NotWritable(f"{path}: {reason}. Make it writable, or name another place with {flag}.")
    if error.errno in _NO_PLACE:
        return NotWritable(f"{path} cannot be written: {reason}. Name another place with {flag}.")
    if error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(os.fspath(path)) or "."):
        return NotWritable(f"{path}: its folder is not there. Name another place with {flag}.")
    return None


def one_line(text: str) -> str:
    r"""A sentence as one line, whatever the names in it hold.

    >>> print(one_line("two\nlines.csv: there is no such file."))
    two\nlines.csv: there is no such file.
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def run_command(name: str, body: Callable[[], int | None]) -> int:
    """Run a command's body; turn our errors into one line on stderr and an exit code.

    Every command line of the package goes through here, so that a user's mistake reads the same
    everywhere and a mistake of ours keeps its traceback.
    """
    try:
        try:
            code = body() or 0
        except SystemExit:  # after --help
            _flush()
            raise
        _flush()
        return code
    except BertTrainParallelError as error:
        if not error.was_said:
            print(f"{name}: {one_line(str(error)) if error.kind == BertTrainParallelError.kind else error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: not a mistake, and nothing to say to it
        _give_up_output()
        return 141
    except OSError as error:
        # whoever writes a file names it in the error: a full disk without a name is that of standard output
        if error.errno in _FULL and error.filename is None:
            _give_up_output()
            reason = (error.strerror or str(error)).lower()
            print(f"{name}: standard output: {reason}. Free some, or send it to another place (> FILE).", file=sys.stderr)
            return NotWritable.exit_code
        sentence = not_writable(error, error.filename) if error.errno in _FULL | _FORBIDDEN and error.filename is not None else None
        if sentence is None:
            raise
        print(f"{name}: {sentence}", file=sys.stderr)
        return sentence.exit_code


def _flush() -> None:
    if sys.stdout is not None:  # as it is where the caller has closed it
        sys.stdout.flush()


def _give_up_output() -> None:
    """Let what standard output could not take go, or Python tries again at its end, and complains in its own words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
