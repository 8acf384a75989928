"""From the words after the launcher's flags to a command that every rank can execute."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from bert_train_parallel.errors import BadSetting

OUR_NAMES = ("bert_train_parallel.py", "bert_train_parallel")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def resolve_command(words: Sequence[str], *, module: bool = False, no_python: bool = False, folder: str = ".") -> tuple[str, ...]:
    """The command for exec: a module, a program, a Python script, or our own trainer by its name.

    >>> resolve_command(["bert_train_parallel.py", "leanings.csv"], folder="/")[1:]
    ('-P', '-m', 'bert_train_parallel', 'leanings.csv')
    >>> resolve_command(["pip", "list"], module=True)[1:]
    ('-m', 'pip', 'list')

    Raises:
        BadSetting: there is no such script or program, or it cannot be executed.
    """
    if module and no_python:
        raise BadSetting("-m and --no_python contradict each other: a module needs Python. Leave one of them out.")
    if not words:
        raise BadSetting("nothing to launch. Name a script and its arguments, for example: launch.py bert_train_parallel.py leanings.csv")
    script, *arguments = words
    if module:
        return (sys.executable, "-m", script, *arguments)
    path = os.path.join(folder, script)
    if no_python:
        return (_program(script, path), *arguments)
    if script in OUR_NAMES and not os.path.isfile(path):
        # -P: the current folder is often a checkout, or holds a folder of our name, and would come first on Python's path
        return (sys.executable, "-P", "-m", "bert_train_parallel", *arguments)
    if not os.path.exists(path):
        raise BadSetting(f"{script}: no such file. Name a script, a module with -m, or a program with --no_python.")
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "__main__.py")):
            return (sys.executable, script, *arguments)
        raise BadSetting(f"{script} is a folder without a __main__.py. Name the script in it.")
    if not script.endswith(".py") and _runs_itself(path):
        return (_program(script, path), *arguments)
    return (sys.executable, script, *arguments)


def is_ours(command: Sequence[str]) -> bool:
    """Whether a resolved command is this package's trainer.

    >>> is_ours(resolve_command(["bert_train_parallel.py"], folder="/"))
    True
    """
    return "-m" in command[1:3] and command[2 + (command[1] == "-P") :][:1] == ("bert_train_parallel",)


def environment_for(command: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """What our trainer needs to find the package that this launcher is from."""
    return checkout_path(given) if is_ours(command) else {}


def checkout_path(given: Mapping[str, str]) -> dict[str, str]:
    """PYTHONPATH for a child that imports this package: only a checkout may not be on Python's path already."""
    checkout = os.path.dirname(_PACKAGE)
    if not os.path.isfile(os.path.join(checkout, "setup.py")):
        return {}
    earlier = given.get("PYTHONPATH")
    return {"PYTHONPATH": f"{checkout}{os.pathsep}{earlier}" if earlier else checkout}


def source_of(arguments: Sequence[str]) -> str | None:
    """The input among our trainer's arguments, told without its parser: a word that follows no flag, or reads like a data file.

    >>> source_of(["--epochs", "2", "data/leanings.csv", "-t", "tweet"])
    'data/leanings.csv'
    >>> source_of(["--resume", "leanings.sqlite"]), source_of(["-h"])
    ('leanings.sqlite', None)
    """
    endings = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".json", ".parquet", ".sqlite", ".gz")
    pairs = [(word, before) for before, word in zip(["", *arguments], arguments, strict=False) if not word.startswith("-")]
    free = [word for word, before in pairs if not before.startswith("-") or "=" in before]
    data = [word for word in free if word.endswith(endings)]
    after_a_switch = [word for word, _ in pairs if word.endswith(endings)]
    return next(iter([*data, *free, *after_a_switch]), None)


def option_of(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option among arguments, `--name value` or `--name=value`; the last one counts.

    >>> option_of(["a.csv", "--output-dir=out", "--run", "x"], "--output_dir", "--output-dir")
    'out'
    """
    found = None
    for number, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in names:
            found = value if equals else next(iter(arguments[number + 1 : number + 2]), None)
    return found


def _program(script: str, path: str) -> str:
    """A program by path, or by name on PATH."""
    if os.path.isfile(path):
        if os.access(path, os.X_OK):
            return script if os.sep in script else os.path.join(os.curdir, script)
        raise BadSetting(f"{script} is not executable. Type: chmod +x {script}  (or leave --no_python out for a Python script)")
    import shutil

    if os.sep not in script and shutil.which(script):
        return script
    raise BadSetting(f"{script}: no such program, neither as a file nor on PATH.")


def _runs_itself(path: str) -> bool:
    """Whether a file is a program of its own kind: a shell script or a binary, not Python."""
    with open(path, "rb") as file:
        start = file.read(256)
    if start.startswith(b"#!"):
        return b"python" not in start.splitlines()[0]
    return start.startswith((b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"))
