"""The command `launch.py`: from words to a request, and from a request to processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from bert_train_parallel import gpus
from bert_train_parallel.command_line import WHOLE_NUMBER, Parser, whole_number
from bert_train_parallel.errors import BadGpuMap, BadSetting, BertTrainParallelError, one_line, run_command
from bert_train_parallel.launching.command import resolve_command
from bert_train_parallel.launching.launcher import launch_node
from bert_train_parallel.launching.plan import LaunchRequest
from bert_train_parallel.processes import Interrupts, guarded, signal_name

NAME = "launch"
MOST_HERE, MOST_OTHERS = 4096, 1 << 20  # ranks of one machine and of all others that a hello may name
EPILOG = """examples:
  launch.py bert_train_parallel.py leanings.csv                    every GPU here that no other launch holds; without a GPU, one CPU process
  launch.py --here_gpus 2 bert_train_parallel.py leanings.sqlite   the two least busy GPUs
  launch.py --gpu_map gpus.json bert_train_parallel.py leanings.sqlite      the same line on every machine of the map
  launch.py -m package.module    launch.py train.py    launch.py --no_python ./train.sh    anything else

Underscores and dashes are the same in a flag. Flags after the script are the script's. When a process fails, all are ended,
and the exit code is that of the first failure (128 + n for signal n). On Linux no process outlives the launch, whichever is
killed; elsewhere processes that leave both their parent and their process group do.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Start this machine's share of a training run: one process per GPU, on one machine or many."""
    return run_command(NAME, lambda: run(read_arguments(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> int:
    """Do what the parsed words ask for; the exit code."""
    _refuse_ssh_flags_alone(arguments)
    if arguments.ssh:
        return _guarded(lambda interrupts: _launch_everywhere(arguments, interrupts))
    try:
        request = read_request(arguments)
    except BertTrainParallelError as error:
        if not arguments.dry_run:
            _tell_master(arguments, error)
        raise
    if request.is_single_node and not arguments.quiet and (idle := _idle_flags(arguments)):
        say(f"this machine is alone, so {idle} changes nothing; --other_gpus or --gpu_map brings others in.")
    told = _nothing if arguments.quiet else say
    if arguments.dry_run:
        from bert_train_parallel.launching.dry_run import describe_plan

        print(describe_plan(request, _claim(request, told, locked=False)))
        return 0
    problem = ""
    try:
        claim = _claim(request, told, locked=True)
    except BadSetting as error:
        if request.is_single_node:
            raise
        claim, problem = gpus.Claim(request.here or 1), str(error)  # the other nodes wait for this one, and must hear why it does not come
    return _guarded(lambda interrupts: _launch(request, claim, interrupts, arguments.quiet, problem))


def _tell_master(arguments: argparse.Namespace, error: BertTrainParallelError) -> None:
    """Say the mistake here, and then on the nodes that wait for this one, if the flags name a master that can be reached."""
    from bert_train_parallel.launching.absent import request_to_tell

    try:
        request = request_to_tell(arguments.master_addr, _read_map(arguments), arguments.master_port, _read_token(arguments))
    except BertTrainParallelError:
        return  # what is wrong is what would lead there
    if request is None:
        return
    say(one_line(str(error)))
    error.was_said = True

    def tell(interrupts: Interrupts) -> int:
        with contextlib.suppress(BertTrainParallelError):  # nobody there, or the answer: that this node cannot take part
            launch_node(request, gpus.Claim(1), interrupts, say=_nothing, warn=_nothing, problem=str(error))
        return 0

    guarded(tell)


def _claim(request: LaunchRequest, told: Callable[[str], None], locked: bool) -> gpus.Claim:
    asked_by = "the GPU map" if request.gpu_map else "--here_gpus"
    claim = gpus.claim(request.here, request.device, request.devices, locked=locked, asked_by=asked_by)
    for note in claim.notes:
        told(note)
    return claim


def _guarded(body: Callable[[Interrupts], int]) -> int:
    code = guarded(lambda interrupts: run_command(NAME, lambda: body(interrupts)))
    if code >= 0:
        return code
    say(f"the process that watched over the ranks was killed by {signal_name(-code)}; all that it had started was ended.")
    return 128 - code


def _launch(request: LaunchRequest, claim: gpus.Claim, interrupts: Interrupts, quiet: bool, problem: str) -> int:
    told, signature = (_nothing, "") if quiet else (say, f"{NAME}: ")
    return launch_node(request, claim, interrupts, say=told, warn=say, problem=problem, signature=signature).exit_code


def _refuse_ssh_flags_alone(arguments: argparse.Namespace) -> None:
    typed = [flag for flag in ("ssh_user", "ssh_option", "ssh_folder", "ssh_python") if getattr(arguments, flag)]
    if typed and not arguments.ssh:
        raise BadSetting(f"--{typed[0]} is for a launch by ssh. Add --ssh and --gpu_map to start every host of the map, or leave it out.")


def _launch_everywhere(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from bert_train_parallel.launching import remote

    gpu_map = _read_map(arguments)
    if not gpu_map:
        raise BadSetting("--ssh needs --gpu_map: the hosts, and how many processes each of them runs.")
    settings, token = remote.settings_of(arguments), _read_token(arguments)
    return remote.launch_everywhere(settings, gpu_map, arguments.flags, arguments.command, token, interrupts, say)


def say(words: str) -> None:
    """A line of the launcher's own."""
    print(f"{NAME}: {words}", file=sys.stderr, flush=True)


def _nothing(words: str) -> None:
    pass


def read_request(arguments: argparse.Namespace) -> LaunchRequest:
    """What this node was asked to launch.

    Raises:
        BadSetting, BadGpuMap: flags that cannot be, or that contradict each other.
    """
    request = LaunchRequest(
        command=resolve_command(arguments.command, module=arguments.module, no_python=arguments.no_python),
        folder=os.getcwd(),
        here=arguments.here_gpus,
        host=arguments.host,
        node_rank=arguments.node_rank,
        master_addr=_checked_master(arguments.master_addr),
        master_port=arguments.master_port,
        store_port=arguments.store_port or None,
        device=arguments.device,
        log_dir=arguments.log_dir,
        join_timeout_s=arguments.join_timeout,
        grace_s=arguments.grace,
        max_restarts=arguments.max_restarts,
        elastic=arguments.elastic,
        job_token=_read_token(arguments),
        send_data=arguments.send_data,
        check=arguments.check,
    )
    gpu_map = _read_map(arguments)
    if gpu_map:
        from bert_train_parallel.launching.gpu_map import find_place

        place = find_place(gpu_map, request.host, request.node_rank, request.here)
        return replace(
            request, gpu_map=place.gpu_map, node_rank=place.node_rank, here=place.ranks if request.here is None else request.here
        )
    others = int(arguments.other_gpus or 0)
    if not others and (request.node_rank or request.elastic):
        flag = f"--node_rank {request.node_rank}" if request.node_rank else "--elastic"
        raise BadSetting(
            f"{flag} is for several machines. Say how many GPUs the other ones have with --other_gpus or --gpu_map, or leave it out."
        )
    if not others and request.master_addr:
        _refuse_another_master(request.master_addr)
    return replace(request, others=others)


def _refuse_another_master(master: str) -> None:
    """A machine that knows of no other one cannot have another one for its master: the counts were forgotten.

    Raises:
        BadSetting, Unreachable: the address is of another machine, or of none.
    """
    from bert_train_parallel.launching import network

    if not any(map(network.is_own, network.resolve(master, "--master_addr"))):
        raise BadSetting(
            f"--master_addr {master} is another machine, and this one was told of no other GPUs. Say how many the other machines have "
            f"with --other_gpus or --gpu_map, or leave --master_addr out."
        )


def _idle_flags(arguments: argparse.Namespace) -> str:
    """The flags for several machines that were typed for one, where they do no harm; as torchrun's are for a single node."""
    typed = {
        "--master_addr": arguments.master_addr is not None,
        "--node_rank": arguments.node_rank is not None,
        "--host": arguments.host is not None,
        "--send_data": arguments.send_data,
    }
    return ", ".join(flag for flag, is_typed in typed.items() if is_typed)


def _checked_master(host: str | None) -> str | None:
    if host is None:
        return None
    from bert_train_parallel.launching.network import has_port

    if not host.strip() or has_port(host) or "@" in host or "/" in host:
        raise BadSetting(f"--master_addr {host!r}: write the name or address of the master alone; --master_port gives its port.")
    return host


def _read_map(arguments: argparse.Namespace) -> dict[str, int] | None:
    """The GPU map, under its own flag or, as in earlier versions, as the file that `--other_gpus` names."""
    other = arguments.other_gpus
    file = None if other is None or WHOLE_NUMBER.fullmatch(other) else other
    # without a letter it is a number that went wrong, unless there is such a file
    is_no_file = file is not None and not any(letter.isalpha() for letter in file) and "{" not in file and not os.path.exists(file)
    if is_no_file or (file is None and other is not None and not 0 <= int(other) <= MOST_OTHERS):
        shown = str(other)[:40] if file is None else repr(file[:40])
        raise BadGpuMap(
            f"--other_gpus {shown}: write how many GPUs the other machines have together, "
            f"a whole number from 0 to {MOST_OTHERS}, or name a JSON file."
        )
    if arguments.gpu_map is not None and other is not None:
        raise BadGpuMap("--gpu_map and --other_gpus both say what the other machines have. Leave one of them out.")
    source = arguments.gpu_map if arguments.gpu_map is not None else file
    if source is None:
        return None
    if not source.strip():
        raise BadGpuMap("--gpu_map is empty, as by a variable that is not set. Name a JSON file, or leave the flag out.")
    from bert_train_parallel.launching.gpu_map import read_gpu_map

    return read_gpu_map(source)


def _read_token(arguments: argparse.Namespace) -> str | None:
    if arguments.job_token is not None and arguments.job_token_file is not None:
        raise BadSetting("--job_token and --job_token_file both give the token. Leave one of them out.")
    for flag, given in (("--job_token", arguments.job_token), ("--job_token_file", arguments.job_token_file)):
        if given is not None and not given.strip():  # without a token every machine of the network could join
            raise BadSetting(
                f"{flag} is empty, as by a variable that is not set. Give every machine the same secret, or leave the flag out."
            )
    if arguments.job_token_file is None:
        return arguments.job_token or os.environ.get("BERT_TRAIN_JOB_TOKEN") or None
    try:
        with open(arguments.job_token_file, encoding="utf-8-sig") as file:  # a byte order mark is no part of the secret
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"--job_token_file {arguments.job_token_file}: {error}. Name a text file with one line.") from None
    if not token:
        raise BadSetting(f"--job_token_file {arguments.job_token_file} is empty. Write one line, the same on every machine.")
    return token


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, beside `command`, the words from the script on, and `flags`, those before it.

    >>> arguments = read_arguments(["--here-gpus", "2", "-q", "train.py", "--here-gpus", "x"])
    >>> arguments.here_gpus, arguments.quiet, arguments.command, arguments.flags
    (2, True, ['train.py', '--here-gpus', 'x'], ['--here_gpus', '2', '-q'])

    Raises:
        BadSetting: a flag that is not known, or has a value that cannot be.
    """
    # argparse finds where the script begins; only then is it known which words keep their dashes
    arguments = _parser().parse_args([_with_underscores(word) for word in argv])
    begins = len(argv) - len(arguments.command)
    arguments.flags = [_with_underscores(word) for word in argv[:begins]]
    arguments.command = list(argv[begins:])
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    return arguments


def _with_underscores(word: str) -> str:
    """
    >>> _with_underscores("--log-dir=my-logs"), _with_underscores("-q"), _with_underscores("--")
    ('--log_dir=my-logs', '-q', '--')
    """
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch.py",
        usage="launch.py [flags] SCRIPT [arguments of the script]",
        description=main.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="script, module or program, and its arguments")
    what = parser.add_argument_group("what is launched")
    what.add_argument("-m", "--module", action="store_true", help="SCRIPT is a Python module")
    what.add_argument(
        "--no_python", action="store_true", help="SCRIPT is a program; executable files that are not Python are found without it"
    )
    what.add_argument("-q", "--quiet", action="store_true", help="nothing from the launcher but errors; the script is never silenced")
    what.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    here = parser.add_argument_group("this machine")
    here.add_argument(
        "--here_gpus",
        type=whole_number(1, MOST_HERE),
        metavar="N",
        help="processes here, on the least busy GPUs (default: on all that no other launch holds)",
    )
    here.add_argument(
        "--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="default: GPUs where there are any, else CPU"
    )
    here.add_argument("--log_dir", metavar="FOLDER", help="the output of each rank (default: beside the run, or a temporary folder)")
    here.add_argument(
        "--grace", type=_seconds(0), default=5.0, metavar="S", help="seconds between asking a process to end and killing it (5)"
    )
    here.add_argument(
        "--max_restarts",
        type=whole_number(0, MOST_OTHERS),
        default=0,
        metavar="N",
        help="start the whole world again after a failure, N times",
    )
    several = parser.add_argument_group("several machines")
    several.add_argument("--other_gpus", metavar="N", help="GPUs of all other machines together; or the file of a GPU map")
    several.add_argument("--gpu_map", metavar="FILE", help='JSON: {"host": GPUs, ...} in the order of node ranks, the master first')
    several.add_argument("--host", metavar="NAME", help="this machine's name in the GPU map (default: found by its addresses)")
    several.add_argument("--node_rank", type=whole_number(0, MOST_OTHERS), metavar="N", help="this machine's number; 0 is the master")
    several.add_argument("--master_addr", metavar="HOST", help="name or address of the master")
    several.add_argument(
        "--master_port", type=whole_number(1, 65535), metavar="PORT", help="default: 29500; a free port for one machine alone"
    )
    several.add_argument(
        "--store_port", type=whole_number(0, 65535), default=0, metavar="PORT", help="where the ranks meet, on the master (0: a free port)"
    )
    several.add_argument(
        "--join_timeout", type=_seconds(0), default=120.0, metavar="S", help="seconds to wait for the other machines (120)"
    )
    several.add_argument("--job_token", metavar="TEXT", help="a secret that all machines of this launch share")
    several.add_argument("--job_token_file", metavar="FILE", help="the same from a file, so that no list of processes shows it")
    several.add_argument("--send_data", action="store_true", help="the master copies input files to machines that lack them")
    several.add_argument("--check", action="store_true", help="let the machines agree, measure the network between all ranks, and stop")
    several.add_argument("--elastic", action="store_true", help="go on without machines that are lost")
    from bert_train_parallel.launching.remote_flags import add_arguments

    add_arguments(parser)
    return parser


def _seconds(least: float) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {least:g} up")
        return value

    return seconds
