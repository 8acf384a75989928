"""Temporal's server for one folder: embedded, on loopback, its history in a file there; and how to reach it or another one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_train_parallel import processes
from bert_train_parallel.errors import BadRun, BadSetting, BertTrainParallelError, LaunchFailed, MissingPackage, Unreachable, not_writable
from bert_train_parallel.launching import network
from bert_train_parallel.launching.ports import free_port
from bert_train_parallel.run_files import write_json
from bert_train_parallel.sweeps.starts import Starts

if TYPE_CHECKING:
    from temporalio.client import Client

LOOPBACK = "127.0.0.1"
ADDRESS, LOCK = "server.json", "server.lock"
_READY_S = 60.0
_DAMAGED = ("file is not a database", "database disk image is malformed")  # as SQLite says it
_KEPT_S = 10 * 365 * 24 * 3600
# The server reads its timers a second ahead, and one that is set within that second, as that of a retry is, waits for its end.
_SETTINGS = ('history.timerProcessorMaxTimeShift="50ms"',)
NEEDED = "Sweeps need Temporal and Optuna, which are not all installed: pip install 'bert-train-parallel[sweep]'"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers, and its web page."""

    grpc: str
    page: str = ""
    folder: str = ""  # whose server it is, as the machine `host` reaches it; empty: an earlier version did not tell
    host: str = ""

    @property
    def is_for_this_machine(self) -> bool:
        return self.grpc.startswith(f"{LOOPBACK}:")


def find_cli() -> str:
    """The program `temporal`.

    Raises:
        MissingPackage: it is not installed.
    """
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.is_file() else shutil.which("temporal")
    if found is None:
        raise MissingPackage(NEEDED)
    return found


def cli_version(cli: str) -> str:
    """A history file belongs to one version of the server."""
    said = subprocess.run([cli, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else "unknown"


class EmbeddedServer:
    """A child of this process that dies with it; another process that wants the same folder uses this one."""

    def __init__(self, folder: Path, ip: str = LOOPBACK) -> None:
        """
        Args:
            ip: how others reach this machine; loopback: they do not.
        Raises:
            BadSetting: it is no address of this machine.
            Unreachable: it is a name that nobody knows.
        """
        self._folder = folder
        self._host = _host_of(ip)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = -1
        self._starts = Starts()

    @property
    def is_ours(self) -> bool:
        return self._lock >= 0

    def keep_up(self) -> Address:
        """See that a server runs for the folder: ours, or that of whoever came first; start it, or start it again.

        Raises:
            MissingPackage: the program is not installed.
            NotWritable: the folder cannot be written.
            BadRun: its history is damaged.
            LaunchFailed: it ends as soon as it is started.
        """
        if not self.is_ours and not self._try_lock():
            return self._read() or Address("")
        if self._process is None or self._process.poll() is not None:
            if not self._starts.may_begin():
                raise self._why_it_ends()
            self._start()
        found = self._read()
        assert found is not None
        return found

    def _try_lock(self) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise not_writable(error, self._folder / LOCK) or error from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _why_it_ends(self) -> BertTrainParallelError:
        """Of a server that ends as soon as it is started."""
        log = self._folder / "server.log"
        reason = (log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it says nothing"])[-1]
        if any(words in reason for words in _DAMAGED):
            return BadRun(
                f"{self._database(find_cli())}, the history of this folder's sweeps, is damaged. Put a copy of it back; or move it away "
                "and run the sweep again: trials that have ended are not trained anew."
            )
        return LaunchFailed(f"the server of {self._folder} ends as soon as it is started: {reason}; see {log}", 1)

    def _database(self, cli: str) -> Path:
        return self._folder / f"temporal-{cli_version(cli)}.db"

    def _start(self) -> None:
        cli = find_cli()
        earlier = self._read()
        # the same port as before, where it is free, so that others who use this server find it again
        port = _free_again(earlier.grpc if earlier else "")
        page = _free_again(earlier.page if earlier else "")
        database = self._database(cli)
        # with one address that is not loopback, the server's own parts do not find each other: then it is all of them
        bound = LOOPBACK if self._host == LOOPBACK else "0.0.0.0"
        command = [cli, "server", "start-dev", "--ip", bound, "--ui-ip", bound, "--port", str(port), "--ui-port", str(page)]
        command += ["--db-filename", str(database), "--log-level", "error"]
        command += [word for setting in _SETTINGS for word in ("--dynamic-config-value", setting)]
        with open(self._folder / "server.log", "ab") as log:
            self._process = processes.start(
                command,
                folder=str(self._folder),
                # what the environment says of another server is not for this one
                environment={name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")},
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        whose = str(self._folder.resolve()), socket.gethostname()
        write_json(self._folder / ADDRESS, asdict(Address(f"{self._host}:{port}", f"http://{self._host}:{page}", *whose)))

    def _read(self) -> Address | None:
        return read_address(self._folder)

    def stop(self) -> None:
        """End the server, if it is ours."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self.is_ours:
            os.close(self._lock)
            self._lock = -1


def _host_of(ip: str) -> str:
    """How this machine is named in an address: by loopback, where `ip` means this machine alone; IPv6 in brackets.

    >>> _host_of("localhost"), _host_of("::1"), _host_of("127.0.0.2")
    ('127.0.0.1', '127.0.0.1', '127.0.0.1')

    Raises:
        BadSetting: it is no address of this machine.
        Unreachable: it is a name that nobody knows.
    """
    found = network.resolve(ip, "--ip")
    if all(map(network.is_loopback, found)):
        return LOOPBACK
    if not any(map(network.is_own, found)):
        own = [address for address in network.own_addresses() if not network.is_loopback(address)]
        raise BadSetting(
            f"--ip {ip} is no address of this machine, which has {', '.join(own) or 'none but loopback'}. Give one of its own."
        )
    return f"[{network.plain(ip)}]" if ":" in ip else ip


def read_address(folder: Path) -> Address | None:
    """The server of a folder, as it was last started; it may be down. None where there was none, or it is another folder's."""
    try:
        found = Address(**json.loads((folder / ADDRESS).read_text(encoding="utf-8")))
        return found if _port_of(found.grpc) and _port_of(found.page) and not _is_of_another(found, folder) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _is_of_another(found: Address, folder: Path) -> bool:
    """Whether the file came with a copy of the folder that the server is for.

    A name on another machine says nothing: there, the same folder may be called otherwise.
    """
    whose = Path(found.folder)
    return found.host == socket.gethostname() and bool(found.folder) and whose.exists() and not whose.samefile(folder)


def _port_of(address: str) -> int:
    """
    Raises:
        ValueError: there is none.

    >>> _port_of("http://[fd00::2]:7233")
    7233
    """
    port = int(address.rpartition(":")[2])
    if not 0 < port < 65536:
        raise ValueError(f"{port} is no port")
    return port


def _free_again(address: str) -> int:
    """The port of an earlier address, where nothing listens on it now; else another one."""
    if address:
        with contextlib.suppress(OSError):
            socket.create_server(("", _port_of(address))).close()
            return _port_of(address)
    return free_port()


async def connect(address: str | None = None, namespace: str | None = None, is_embedded: bool = False) -> Client:
    """A client; what is left out comes from Temporal's environment and configuration file (TLS, API key, address, namespace).

    Args:
        is_embedded: a folder's own server, which has neither TLS nor keys, whatever the environment says of others.
    Raises:
        Unreachable: nothing answers there.
        BadSetting: Temporal's environment or configuration file cannot be read; the sentence names the variable.
        MissingPackage: Temporal is not installed.
    """
    try:
        from temporalio.client import Client
        from temporalio.contrib.pydantic import pydantic_data_converter
    except ImportError:
        raise MissingPackage(NEEDED) from None
    config = {} if is_embedded else configured()
    config |= {"target_host": address} if address else {}
    config |= {"namespace": namespace} if namespace else {}
    target = config.setdefault("target_host", "localhost:7233")
    if "://" in target:
        raise BadSetting(f"{target}: a Temporal server is named HOST:PORT. For TLS, set TEMPORAL_TLS=true.")
    try:
        client = await Client.connect(**config, data_converter=pydantic_data_converter, runtime=_quiet_runtime())
    except (RuntimeError, ValueError) as error:
        raise Unreachable(
            f"No Temporal server answers at {target}: {_reason(str(error))}. "
            "Start one with bert_sweep server, or name another with --address."
        ) from None
    await _check_namespace(client, target)
    return client


async def _check_namespace(client: Client, target: str) -> None:
    """Raises BadSetting where the server has no such namespace, which else reads as if it had no such sweep."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.service import RPCError, RPCStatusCode

    if client.namespace == "default":
        return
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:  # who may not ask, may yet use it
        if error.status == RPCStatusCode.NOT_FOUND:
            raise BadSetting(
                f"The Temporal server at {target} has no namespace {client.namespace}. Name another with --namespace."
            ) from None


def configured() -> dict[str, Any]:
    """What Temporal's environment variables and configuration file say of a server.

    Raises:
        BadSetting: they cannot be read; the sentence names the variable.
    """
    from temporalio.envconfig import ClientConfig

    named = os.environ.get("TEMPORAL_CONFIG_FILE")
    if named and not Path(named).is_file():
        raise BadSetting(f"TEMPORAL_CONFIG_FILE {named}: there is no such file. Correct it, or unset it.")
    try:
        return dict(ClientConfig.load_client_connect_config())
    except (RuntimeError, ValueError, OSError) as error:  # its own part, which is not Python, raises RuntimeError
        raise BadSetting(f"{_unread(error, os.environ)}.") from None


def _unread(error: Exception, environment: Mapping[str, str]) -> str:
    """Which of Temporal's variables cannot be used, or that its configuration file cannot, and why.

    >>> _unread(RuntimeError("Profile 'mine' not found"), {"TEMPORAL_PROFILE": "mine"})
    "TEMPORAL_PROFILE mine: Profile 'mine' not found. Correct it, or unset it"
    >>> _unread(RuntimeError("TOML parse error at line 1"), {})
    "Temporal's configuration file temporalio/temporal.toml, in your folder of settings: TOML parse error at line 1. Correct it"
    """
    file = error.filename if isinstance(error, OSError) else None
    named = [name for name in sorted(environment) if name.startswith("TEMPORAL_") and (name in str(error) or environment[name] == file)]
    name = named[0] if named else "TEMPORAL_PROFILE" if str(error).startswith("Profile") else "TEMPORAL_CONFIG_FILE"
    value = f" {environment[name]}" if name in environment and name.endswith(("_PATH", "_FILE", "_PROFILE")) else ""  # others are secrets
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    words = error.strerror if isinstance(error, OSError) else ": ".join(dict.fromkeys((lines[0], lines[-1])))
    if name == "TEMPORAL_CONFIG_FILE" and name not in environment:
        return f"Temporal's configuration file temporalio/temporal.toml, in your folder of settings: {words}. Correct it"
    return f"{name}{value}: {words}. Correct it, or unset it"


def _reason(said: str) -> str:
    """What a person can use of a connection's error, which quotes the insides of the library that met it.

    >>> _reason('Failed client connect: Error(ConnectError(Os { code: 111, kind: Refused, message: "Connection refused" }))')
    'connection refused'
    >>> _reason("Invalid target URL: relative URL without a base.")
    'Invalid target URL: relative URL without a base'
    >>> _reason("Error(Transport, ConnectError(Custom { kind: InvalidData, error: InvalidMessage(InvalidContentType) }))")
    'it does not speak TLS, which TEMPORAL_TLS, TEMPORAL_API_KEY or the configuration file asks for'
    """
    if "InvalidContentType" in said:
        return "it does not speak TLS, which TEMPORAL_TLS, TEMPORAL_API_KEY or the configuration file asks for"
    quoted = re.search(r'(?:message|error): "([^"]+)"', said)
    return quoted[1][0].lower() + quoted[1][1:] if quoted else (said.splitlines() or ["no reason given"])[0].rstrip(".")


@functools.cache
def _quiet_runtime() -> Any:
    """Temporal's own part without its warnings: what matters is raised, and said in words of ours."""
    from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"))))


async def connect_when_ready(server: EmbeddedServer) -> Client:
    """A client of an embedded server, which takes a moment to start.

    Raises:
        Unreachable: it does not answer for a minute.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        address = server.keep_up()
        with contextlib.suppress(Unreachable):
            if address.grpc:
                client = await connect(address.grpc, "default", True)
                if server.is_ours:
                    await _keep_histories(client)
                return client
        if time.monotonic() > deadline:
            raise Unreachable(f"The embedded server did not come up within {_READY_S:g} s; see server.log beside server.json.")
        await asyncio.sleep(0.1)


async def _keep_histories(client: Client) -> None:
    """Keep histories of sweeps that have ended: a new server's namespace forgets them after a day.

    Raises:
        Unreachable: it does not answer yet.
    """
    from google.protobuf.duration_pb2 import Duration
    from temporalio.api.namespace.v1 import NamespaceConfig
    from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
    from temporalio.service import RPCError

    config = NamespaceConfig(workflow_execution_retention_ttl=Duration(seconds=_KEPT_S))
    try:
        await client.workflow_service.update_namespace(UpdateNamespaceRequest(namespace=client.namespace, config=config))
    except RPCError as error:
        raise Unreachable(f"The embedded server does not answer: {error.message}.") from None


def running_server(folder: Path) -> Address | None:
    """The server of a folder, if it runs now."""
    found = read_address(folder)
    return found if found and (found.host != socket.gethostname() or _is_held(folder / LOCK)) and _answers(found) else None


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine keeps a folder's server up: its port alone may be another's since it was down."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except OSError:  # held; or there are no locks in this place, and nothing is known
        return True


def _answers(address: Address) -> bool:
    """Whether something listens there."""
    host = address.grpc.rpartition(":")[0]
    try:
        socket.create_connection((network.plain(host), _port_of(address.grpc)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def is_configured() -> bool:
    """Whether Temporal's own environment or configuration file names a server; raises as `configured` does."""
    return "target_host" in configured()


async def serve(folder: Path, ip: str = LOOPBACK) -> int:
    """Run a folder's embedded server in the foreground.

    Args:
        ip: another address than loopback opens the server on all of this machine's, and is what others are told. Whoever
            reaches it can start trainings, and read what they find.

    Raises:
        Unreachable: another process runs it already, or `ip` is a name that nobody knows.
        BadSetting: `ip` is no address of this machine.
    """
    server = EmbeddedServer(folder, ip)
    address = server.keep_up()
    if not server.is_ours:
        raise Unreachable(f"The server of {folder} runs already, at {address.grpc}.")
    try:
        await connect_when_ready(server)
        whom = " (for this machine alone; --ip lets others reach it)" if address.is_for_this_machine else ""
        print(f"Temporal's server for {folder} answers at {address.grpc}; its page: {address.page}{whom}", flush=True)
        while True:
            server.keep_up()
            await asyncio.sleep(1)
    finally:
        server.stop()
