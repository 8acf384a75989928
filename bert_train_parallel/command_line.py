"""Flags of every command: dashes and underscores are the same in them, and a mistake is one sentence, as all mistakes are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from bert_train_parallel.errors import BadSetting

WHOLE_NUMBER = re.compile("-?[0-9]{1,20}")


class Parser(argparse.ArgumentParser):
    """A parser that raises in place of printing its usage and exiting, and takes `--a-b` for `--a_b`.

    Use it inside `errors.run_command`.
    """

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """
        >>> parser = Parser(prog="train")
        >>> _ = parser.add_argument_group("machine").add_argument("--batch_size")
        >>> parser.parse_args(["--batch-size", "3"]), parser.parse_args(["--batch_size=3"]), parser.parse_args(["--batch", "3"])
        (Namespace(batch_size='3'), Namespace(batch_size='3'), Namespace(batch_size='3'))
        """
        for flag, action in list(self._option_string_actions.items()):
            for spelling in (flag.replace("_", "-"), "--" + flag[2:].replace("-", "_")) if flag.startswith("--") else ():
                self._option_string_actions.setdefault(spelling, action)
        return super().parse_known_args(args, namespace)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """What an abbreviation may stand for; two spellings of one flag are one."""
        return list({id(found[0]): found for found in super()._get_option_tuples(option_string)}.values())

    def error(self, message: str) -> NoReturn:
        """
        >>> parser = Parser(prog="train", add_help=False)
        >>> _ = parser.add_argument("--batch_size")
        >>> parser.parse_args(["--batchsize", "3"])
        Traceback (most recent call last):
        bert_train_parallel.errors.BadSetting: unrecognized arguments: --batchsize 3. Did you mean --batch_size? See train --help.
        """
        import difflib  # for mistakes only: the launcher starts within milliseconds

        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BadSetting(f"{message}.{hint} See {self.prog} --help.")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number within these bounds.

    >>> whole_number(1, 8)("8"), whole_number(0)("3")
    (8, 3)
    >>> whole_number(0)("-1")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: '-1' is not a whole number from 0 up
    """

    def whole(text: str) -> int:
        if not WHOLE_NUMBER.fullmatch(text) or int(text) < least or (most is not None and int(text) > most):
            bounds = f"{least} up" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {bounds}")
        return int(text)

    return whole
