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
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_train_parallel import processes
from bert_train_parallel.errors import BadSetting, MissingPackage, Unreachable, not_writable
from bert_train_parallel.launching.ports import free_port
from bert_train_parallel.run_files import write_json

if TYPE_CHECKING:
    from temporalio.client import Client

LOOPBACK = "127.0.0.1"
_READY_S = 60.0
_KEPT_S = 10 * 365 * 24 * 3600
# The server reads its timers a second ahead, and one that is set within that second, as that of a retry is, waits for its end.
_SETTINGS = ('history.timerProcessorMaxTimeShift="50ms"',)
NEEDED = "Sweeps need Temporal and Optuna, which are not all installed: pip install 'bert-train-parallel[sweep]'"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers, and its web page."""

    grpc: str
    page: str = ""


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
        """`ip` is how others reach this machine; loopback: they do not."""
        self._folder = folder
        self._ip = ip
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = -1

    @property
    def is_ours(self) -> bool:
        return self._lock >= 0

    def keep_up(self) -> Address:
        """See that a server runs for the folder: ours, or that of whoever came first; start it, or start it again.

        Raises:
            MissingPackage: the program is not installed.
            NotWritable: the folder cannot be written.
        """
        if not self.is_ours and not self._try_lock():
            return self._read() or Address("")
        if self._process is None or self._process.poll() is not None:
            self._start()
        found = self._read()
        assert found is not None
        return found

    def _try_lock(self) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise not_writable(error, self._folder / "server.lock") or error from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _start(self) -> None:
        cli = find_cli()
        earlier = self._read()
        # the same port as before, where it is free, so that others who use this server find it again
        port = int(earlier.grpc.rpartition(":")[2]) if earlier and _is_free(earlier.grpc) else free_port()
        page = int(earlier.page.rpartition(":")[2]) if earlier and _is_free(earlier.page) else free_port()
        database = self._folder / f"temporal-{cli_version(cli)}.db"
        # with one address that is not loopback, the server's own parts do not find each other: then it is all of them
        bound = self._ip if self._ip == LOOPBACK else "0.0.0.0"
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
        write_json(self._folder / "server.json", asdict(Address(f"{self._ip}:{port}", f"http://{self._ip}:{page}")))

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


def read_address(folder: Path) -> Address | None:
    """The server of a folder, as it was last started; it may be down."""
    try:
        return Address(**json.loads((folder / "server.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_free(address: str) -> bool:
    import socket

    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, ValueError):
        return False
    return True


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
    config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(**config, data_converter=pydantic_data_converter, runtime=_quiet_runtime())
    except (RuntimeError, ValueError) as error:
        raise Unreachable(
            f"No Temporal server answers at {config['target_host']}: {_reason(str(error))}. "
            "Start one with bert_sweep server, or name another with --address."
        ) from None


def configured() -> dict[str, Any]:
    """What Temporal's environment variables and configuration file say of a server.

    Raises:
        BadSetting: they cannot be read; the sentence names the variable.
    """
    from temporalio.envconfig import ClientConfig

    try:
        return dict(ClientConfig.load_client_connect_config())
    except (RuntimeError, ValueError, OSError) as error:  # its own part, which is not Python, raises RuntimeError
        raise BadSetting(f"{_unread(error, os.environ)}. Correct it, or unset it.") from None


def _unread(error: Exception, environment: Mapping[str, str]) -> str:
    """Which of Temporal's variables cannot be used, and why.

    >>> _unread(RuntimeError("Profile 'mine' not found"), {"TEMPORAL_PROFILE": "mine"})
    "TEMPORAL_PROFILE mine: Profile 'mine' not found"
    """
    file = error.filename if isinstance(error, OSError) else None
    named = [name for name in sorted(environment) if name.startswith("TEMPORAL_") and (name in str(error) or environment[name] == file)]
    name = named[0] if named else "TEMPORAL_PROFILE" if str(error).startswith("Profile") else "TEMPORAL_CONFIG_FILE"
    value = f" {environment[name]}" if name in environment and name.endswith(("_PATH", "_FILE", "_PROFILE")) else ""  # others are secrets
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    words = error.strerror if isinstance(error, OSError) else ": ".join(dict.fromkeys((lines[0], lines[-1])))
    return f"{name}{value}: {words}"


def _reason(said: str) -> str:
    """What a person can use of a connection's error, which quotes the insides of the library that met it.

    >>> _reason('Failed client connect: Error(ConnectError(Os { code: 111, kind: Refused, message: "Connection refused" }))')
    'connection refused'
    >>> _reason("Invalid target URL: relative URL without a base.")
    'Invalid target URL: relative URL without a base'
    """
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


def answers(address: Address) -> bool:
    """Whether something listens at a folder's address."""
    import socket

    host, _, port = address.grpc.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def is_configured() -> bool:
    """Whether Temporal's own environment names a server."""
    return any(os.environ.get(name) for name in ("TEMPORAL_ADDRESS", "TEMPORAL_CONFIG_FILE", "TEMPORAL_PROFILE"))


async def serve(folder: Path, ip: str = LOOPBACK) -> int:
    """Run a folder's embedded server in the foreground.

    Args:
        ip: another address than loopback opens the server on all of this machine's, and is what others are told. Whoever
            reaches it can start trainings, and read what they find.

    Raises:
        Unreachable: another process runs it already.
    """
    server = EmbeddedServer(folder, ip)
    address = server.keep_up()
    if not server.is_ours:
        raise Unreachable(f"The server of {folder} runs already, at {address.grpc}.")
    try:
        await connect_when_ready(server)
        print(f"Temporal's server for {folder} answers at {address.grpc}; its page: {address.page}", flush=True)
        while True:
            server.keep_up()
            await asyncio.sleep(1)
    finally:
        server.stop()
