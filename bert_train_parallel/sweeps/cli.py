"""The command `bert_sweep`: words to calls; Temporal and Optuna are loaded when a subcommand needs them."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_train_parallel.command_line import Parser, whole_number
from bert_train_parallel.errors import BadRun, BadSetting, BertTrainParallelError, MissingPackage, Unreachable, run_command
from bert_train_parallel.processes import end_with

if TYPE_CHECKING:
    from temporalio.client import Client

    from bert_train_parallel.sweeps.messages import BertFineTuneRequest

NAME = "bert_sweep"
_EPILOG = """examples:
  bert_sweep example random > sweep.json     a file to begin with
  bert_sweep run sweep.json                  server, worker, live table, leaderboard, page; again after any crash: goes on
  bert_sweep watch leanings-random           the live table in another terminal
  bert_sweep set-concurrency leanings-random 4

A sweep's files are in ./bert_sweeps (or --output_dir). Commands find the server there; --address names another one, and
Temporal's own environment variables and configuration file are read (TLS, API keys).
"""
_RUN_ELSEWHERE = (
    "run has a server and workers of its own; leave {} out. On another server: bert_sweep worker {}, and then bert_sweep start FILE {}."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Durable sweeps: many trainings side by side, each one launch, and none lost or repeated whatever crashes."""
    if argv is None:  # the command itself: threads of Temporal's own part may abort a process that finalises
        end_with(lambda: run_command(NAME, lambda: _run(sys.argv[1:])))
    return run_command(NAME, lambda: _run(argv))


class _Subcommand(Parser):
    """Has all flags there are, so what it does not know is a mistake, which it can tell best."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(_with_dashes(argv))
    given = " ".join(f"--{name} {getattr(arguments, name)}" for name in ("address", "namespace") if getattr(arguments, name))
    if arguments.own_server and given:
        raise BadSetting(arguments.own_server.replace("{}", given))
    try:
        return int(arguments.body(arguments) or 0)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("temporalio", "optuna"):
            from bert_train_parallel.sweeps.server import NEEDED

            raise MissingPackage(NEEDED) from None
        raise
    except asyncio.CancelledError:  # SIGTERM: everything was ended in order
        return _stopped(143)
    except KeyboardInterrupt:
        return _stopped(130)


def _stopped(exit_code: int) -> int:
    print(f"{NAME}: stopped. The same command goes on.", file=sys.stderr)
    return exit_code


def _with_dashes(argv: Sequence[str]) -> list[str]:
    """The subcommand in either spelling, as flags may be.

    >>> _with_dashes(["set_budget", "my_sweep", "2"])
    ['set-budget', 'my_sweep', '2']
    """
    return [*(word.replace("_", "-") for word in argv[:1]), *argv[1:]]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=NAME, description=main.__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Subcommand)

    def command(
        name: str, body: Callable[[argparse.Namespace], int | None], *words: tuple[str, dict[str, Any]], own_server: str = ""
    ) -> None:
        """`own_server`: why it takes no other, and what to type instead."""
        one = commands.add_parser(name, help=(body.__doc__ or "").split("\n")[0], description=body.__doc__)
        for word, options in words:
            one.add_argument(word, **options)
        one.add_argument(
            "--output_dir", type=Path, default=Path("bert_sweeps"), metavar="FOLDER", help="where all sweeps' files are (bert_sweeps)"
        )
        other = "Temporal's server (default: that of the folder, if it runs)"
        one.add_argument("--address", metavar="HOST:PORT", help=argparse.SUPPRESS if own_server else other)
        one.add_argument("--namespace", help=argparse.SUPPRESS if own_server else "Temporal's namespace")
        one.set_defaults(body=body, own_server=own_server)

    sweep_id = ("id", {"type": _name, "metavar": "ID", "help": "the sweep's experiment_id"})
    file = ("file", {"type": Path, "metavar": "FILE", "help": "JSON; bert_sweep example shows one"})
    trials = ("--trials", {"type": whole_number(1), "metavar": "N", "help": "trials at a time here (default: one for each GPU)"})
    number = ("trial", {"type": whole_number(0), "metavar": "TRIAL"})
    kinds = {"choices": ("coordinate", "ladder", "random")}
    command("run", _run_sweep, file, own_server=_RUN_ELSEWHERE)
    command("coordinate", _coordinate, file, trials, own_server="coordinate runs the server of --output_dir; leave {} out.")
    hub = {"action": "store_true", "help": "the demo's models and data sets, from the hub"}
    command("example", _example, ("kind", kinds), ("--hub", hub), own_server="example asks no server; leave {} out.")
    command(
        "server",
        _server,
        ("--ip", {"default": "127.0.0.1", "metavar": "IP", "help": "how other machines reach this one (default: they do not)"}),
        own_server="server finds a port by itself, and tells it; leave {} out. --ip lets other machines reach it.",
    )
    roles = {
        "action": "append",
        "choices": ("training", "eval", "node"),
        "help": "what to serve; may be repeated (default: training and eval)",
    }
    cores = {"type": whole_number(1), "metavar": "N", "help": "CPU cores for each trial without a GPU (default: an equal part)"}
    host = {"metavar": "NAME", "help": "this node's name in GPU maps"}
    command("worker", _worker, ("--queue", roles), trials, ("--cores", cores), ("--host", host))
    command("start", _start, file)
    command("status", _status, ("id", {"type": _name, "metavar": "ID", "nargs": "?", "help": "the sweep's experiment_id (default: all)"}))
    command("watch", _watch, sweep_id)
    for name, help in (("pause", "begin no further trial"), ("resume", "begin trials again"), ("approve", "let the next rung begin")):
        command(name, _update(name, help), sweep_id)
    command("stop", _stop, sweep_id, ("--now", {"action": "store_true", "help": "end the trials under way too"}))
    command("stop-trial", _update("stop_trial", "end one trial; the others go on", "trial"), sweep_id, number)
    command("add-trials", _update("add_trials", "run more trials", "count"), sweep_id, ("count", {"type": whole_number(1), "metavar": "N"}))
    budget = ("hours", {"type": _hours, "metavar": "GPU-HOURS|none"})
    command("set-budget", _update("set_budget", "change what the sweep may spend", "hours"), sweep_id, budget)
    count = ("count", {"type": whole_number(1), "metavar": "N"})
    command("set-concurrency", _update("set_concurrency", "change how many trials run at a time", "count"), sweep_id, count)
    command("export", _export, sweep_id)
    command("rerun", _rerun, sweep_id, ("trial", {"type": whole_number(0), "metavar": "TRIAL", "nargs": "?", "help": "default: the best"}))
    command(
        "infer",
        _infer,
        ("run", {"type": _run_id, "metavar": "RUN", "help": "a run id"}),
        ("texts", {"metavar": "TEXT", "nargs": "+", "help": "two for each prediction, where the model was trained on pairs"}),
        own_server="infer takes the model from --output_dir, without a server; leave {} out.",
    )
    return parser


def _run_sweep(arguments: argparse.Namespace) -> int:
    """run a sweep to its end: server, worker, live table, leaderboard, page; the same again goes on"""
    from bert_train_parallel.sweeps.run import run

    return run(arguments.file, arguments.output_dir)


def _coordinate(arguments: argparse.Namespace) -> int:
    """train several given configurations and evaluate each"""
    from bert_train_parallel.sweeps.run import coordinate

    return coordinate(arguments.file, arguments.output_dir, arguments.trials)


def _example(arguments: argparse.Namespace) -> None:
    """print a file to begin with"""
    from bert_train_parallel.sweeps.examples import example

    print(json.dumps(example(arguments.kind, arguments.hub), indent=2))


def _server(arguments: argparse.Namespace) -> int:
    """run the folder's embedded Temporal server until Ctrl-C"""
    from bert_train_parallel.sweeps.server import serve

    return asyncio.run(serve(arguments.output_dir.resolve(), arguments.ip))


def _worker(arguments: argparse.Namespace) -> None:
    """serve queues until Ctrl-C: training and node run trials, eval runs sweeps and all that is short"""
    from bert_train_parallel.sweeps.folder import SharedFolder
    from bert_train_parallel.sweeps.worker import work

    async def serve(client: Client) -> None:
        folder = SharedFolder(arguments.output_dir.resolve())
        folder.root.mkdir(parents=True, exist_ok=True)
        await work(client, folder, arguments.queue or ["training", "eval"], arguments.trials, arguments.host, arguments.cores)

    _with_client(arguments, serve)


def _start(arguments: argparse.Namespace) -> None:
    """start a sweep on a server whose workers run elsewhere, and return"""
    from bert_train_parallel.sweeps.requests import notes_on, read_sweep
    from bert_train_parallel.sweeps.run import hand_over, tell

    request = read_sweep(arguments.file)
    tell(notes_on(request))
    print(_with_client(arguments, lambda client: hand_over(client, request, arguments.output_dir)))


def _status(arguments: argparse.Namespace) -> None:
    """what sweeps there are, and how far each is"""
    from bert_train_parallel.sweeps import status

    def with_client(body: Callable[[Client], Awaitable[Any]]) -> Any:
        return _with_client(arguments, body)

    if arguments.id:
        found = status.lines(arguments.output_dir, arguments.id, with_client)
    elif arguments.address:
        found = list(with_client(status.all_of).values()) or ["There is no sweep on this server."]
    elif _is_elsewhere(arguments):
        found = status.all_with(arguments.output_dir, with_client)
    else:
        found = status.all_in(arguments.output_dir, with_client)
    print("\n".join(found))


def _watch(arguments: argparse.Namespace) -> int:
    """show a sweep until it ends"""
    from bert_train_parallel.sweeps import run, server, watching
    from bert_train_parallel.sweeps.results import read_result

    done = read_result(arguments.output_dir / arguments.id)
    if done is None:
        found = server.read_address(arguments.output_dir)
        page = found.page if found and not arguments.address else ""
        result = _with_client(arguments, lambda client: watching.follow(client, arguments.id, page))
        done = read_result(arguments.output_dir / arguments.id)
        if done is None:
            from bert_train_parallel.sweeps.views import result_lines

            print("\n".join(result_lines(result, {})))
            return 0
    return run.show(done[1], done[0], arguments.output_dir)


def _update(name: str, help: str, *words: str) -> Callable[[argparse.Namespace], None]:
    def body(arguments: argparse.Namespace) -> None:
        _tell(arguments, name, [getattr(arguments, word) for word in words])

    body.__doc__ = help
    return body


def _tell(arguments: argparse.Namespace, name: str, given: list[Any]) -> None:
    """Tell a sweep something, and print its answer; raises BadRun for one that has ended here."""
    from bert_train_parallel.sweeps.results import read_result
    from bert_train_parallel.sweeps.status import update

    if not arguments.address and read_result(arguments.output_dir / arguments.id):
        raise BadRun(f"{arguments.id} has ended; bert_sweep status {arguments.id} shows what it found.")
    print(_with_client(arguments, lambda client: update(client, arguments.id, name, given)))


def _stop(arguments: argparse.Namespace) -> None:
    """begin no further trial, and end the sweep when those under way have ended"""
    _tell(arguments, "stop", [arguments.now])


def _export(arguments: argparse.Namespace) -> None:
    """write leaderboard, RESULT and page of a sweep as it is now"""
    from bert_train_parallel.sweeps.status import export_now

    print(export_now(arguments.output_dir, arguments.id, lambda body: _with_client(arguments, body)))


def _rerun(arguments: argparse.Namespace) -> int:
    """train a trial once more, from the sweep's history and snapshot alone, and compare its predictions"""
    from bert_train_parallel.sweeps import again
    from bert_train_parallel.sweeps.folder import SharedFolder
    from bert_train_parallel.sweeps.results import read_result

    folder = SharedFolder(arguments.output_dir.resolve())
    done = read_result(arguments.output_dir / arguments.id)

    def chain(asked: list[BertFineTuneRequest]) -> list[BertFineTuneRequest]:
        return again.chain_of(asked, again.run_named(asked, arguments.id, arguments.trial, done[1] if done else None))

    try:
        found = chain(again.written_down(folder, arguments.id))
    except BadRun:  # the folder of a run is gone
        found = chain(_with_client(arguments, lambda client: again.asked_for(client, arguments.id), starts_server=True))
    return again.run_again(found, folder)


def _infer(arguments: argparse.Namespace) -> None:
    """labels for texts, with a run's model"""
    from bert_train_parallel.sweeps.evaluation import infer, inference_of
    from bert_train_parallel.sweeps.folder import SharedFolder

    folder = SharedFolder(arguments.output_dir.resolve())
    found = asyncio.run(infer(inference_of(arguments.run, arguments.texts, folder), folder, lambda: None))
    labels = found.label_names or [""] * len(found.texts)
    texts = [" | ".join(parts) for parts in zip(found.texts, found.text_pairs, strict=True)] if found.text_pairs else found.texts
    for text, label, confidence in zip(texts, labels, found.confidences, strict=True):
        print(f"{label}  {confidence:.4f}  {text}".strip())


def _with_client(arguments: argparse.Namespace, body: Callable[[Client], Awaitable[Any]], starts_server: bool = False) -> Any:
    """Do something with a client: of `--address`, of the folder's server if it runs, or of Temporal's own configuration.

    Raises:
        Unreachable: no server answers; the sentence says how to start one.
    """
    from bert_train_parallel.sweeps.server import (
        ADDRESS,
        EmbeddedServer,
        connect,
        connect_when_ready,
        is_configured,
        read_address,
        running_server,
    )

    address = arguments.address
    has_own = (arguments.output_dir / ADDRESS).is_file()  # or that of the folder from which this one was copied

    async def call() -> Any:
        found = read_address(arguments.output_dir)
        if found and address and found.grpc != address:
            found = None
        if starts_server and (found or (has_own and not address)):
            server = EmbeddedServer(arguments.output_dir.resolve())
            try:
                return await body(await connect_when_ready(server))
            finally:
                server.stop()
        if found and (address or running_server(arguments.output_dir)):
            return await body(await connect(found.grpc, arguments.namespace or "default", True))
        is_elsewhere = address or is_configured()
        if has_own and not is_elsewhere:
            raise _down(arguments)
        try:
            client = await connect(address, arguments.namespace)
        except Unreachable as error:
            raise error if is_elsewhere else _down(arguments) from None
        return await body(client)

    return asyncio.run(call())


def _is_elsewhere(arguments: argparse.Namespace) -> bool:
    """Whether a command without an address means the server that Temporal's own configuration names."""
    from bert_train_parallel.sweeps.server import is_configured, running_server

    return not running_server(arguments.output_dir) and is_configured()


def _down(arguments: argparse.Namespace) -> BertTrainParallelError:
    """Why a folder without a server that runs cannot answer, and what to type."""
    from bert_train_parallel.sweeps.server import ADDRESS

    folder = arguments.output_dir
    if not (folder / ADDRESS).is_file():
        return Unreachable(
            f"{folder} has no server: no sweep was run there. bert_sweep run FILE runs one; --output_dir names "
            "another folder, --address another server, and bert_sweep server starts one alone."
        )
    if getattr(arguments, "id", None) and not (folder / arguments.id / "request.json").is_file():
        return BadRun(f"There is no sweep {arguments.id} in {folder}. bert_sweep status lists them.")
    return Unreachable(f"The server of {folder} does not run. bert_sweep run FILE goes on with a sweep; bert_sweep server runs it alone.")


def _name(text: str) -> str:
    """A sweep's name, which is that of a folder and never a path.

    >>> _name("leanings-random")
    'leanings-random'
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a sweep; bert_sweep status lists them")
    return text


def _run_id(text: str) -> str:
    """A run's name, or the last part of its folder's path.

    >>> _run_id("bert_sweeps/bert_runs/mine-t0003/")
    'mine-t0003'
    """
    name = Path(text).name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a run; the leaderboard of a sweep has them, such as mine-t0003")
    return name


def _hours(text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPU-hours above 0, nor none")
    return value


if __name__ == "__main__":
    sys.exit(main())
