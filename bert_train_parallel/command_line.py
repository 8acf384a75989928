"""Flags of every command: dashes and underscores are the same in them, and a mistake is one sentence, as all mistakes are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NoReturn

from bert_train_parallel.errors import BadSetting


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
        import re

        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise BadSetting(f"{message}.{hint} See {self.prog} --help.")
