"""Flags of every command: a mistake is one sentence, as all mistakes are."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bert_train_parallel.errors import BadSetting


class Parser(argparse.ArgumentParser):
    """A parser that raises in place of printing its usage and exiting; use it inside `errors.run_command`."""

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
