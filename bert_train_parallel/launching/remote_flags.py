"""The flags of `--ssh`, apart from what they do, so that a launch without it loads nothing of it."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them, in a group of their own."""
    group = parser.add_argument_group("all nodes from one")
    group.add_argument("--ssh", action="store_true", help="start the same line on every host of --gpu_map by ssh")
    group.add_argument("--ssh_user", metavar="NAME", help="user there; else as ~/.ssh/config says")
    group.add_argument("--ssh_option", metavar="NAME=VALUE", action="append", default=[], help="one more ssh -o option; may be repeated")
    group.add_argument("--ssh_folder", metavar="FOLDER", help="folder there; else the path of the current one")
    group.add_argument("--ssh_python", metavar="PATH", help="Python there, with this package; else the path of this one")
