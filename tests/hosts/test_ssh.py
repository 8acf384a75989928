"""`--ssh`: all nodes from one, with a real sshd on every other host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fleet import Host, Run, until
from .launches import SAY_WHO, SOON_S, WAIT, all_say

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or ""
pytestmark = pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="no sshd here (Debian package openssh-server)")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return folder


@pytest.fixture
def servers(hosts: list[Host], keys: Path) -> Iterator[list[Run]]:
    """An sshd on beta and on gamma."""
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {"HostKey": keys / "host", "AuthorizedKeysFile": keys / "user.pub", "PidFile": "none", "UsePAM": "no", "StrictModes": "no"}
    words = [word for name, value in (options | {"PermitRootLogin": "yes"}).items() for word in ("-o", f"{name}={value}")]
    runs = [host.start(SSHD, "-D", "-e", "-f", "/dev/null", *words) for host in hosts[1:3]]
    for run in runs:
        run.wait_for("Server listening", SOON_S)
    yield runs
    for host, run in zip(hosts[1:3], runs, strict=True):
        left = set(host.pids()) - descendants_of_server(run)
        host.kill()
        assert not left, f"processes survived on {host.name}"


def descendants_of_server(run: Run) -> set[int]:
    """The server itself: its process, and those that wrapped it."""
    return {pid for pid in run.host.pids() if "sshd" in command_of(pid)}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def launchers(host: Host) -> list[int]:
    return [pid for pid in host.pids() if "sshd" not in command_of(pid)]


def launch_by_ssh(host: Host, keys: Path, gpu_map: str, script: str) -> Run:
    (host.folder / "gpus.json").write_text(gpu_map)
    options = {"IdentityFile": keys / "user", "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
    words = [word for name, value in options.items() for word in ("--ssh_option", f"{name}={value}")]
    return host.launch("--ssh", "--ssh_user", "root", *words, "--gpu_map", "gpus.json", host.script(script))


def test_one_line_starts_every_host_and_shows_their_output(hosts: list[Host], servers: list[Run], keys: Path) -> None:
    run = launch_by_ssh(hosts[0], keys, '{"alpha": 1, "beta": 2, "gamma": 1}', SAY_WHO)
    assert run.wait(SOON_S) == 0, run.text
    all_say(
        [run], "[alpha] ", "rank 0 of 4", "[beta] ", "rank 2 of 4, local 1, attempt 0 on beta", "rank 3 of 4, local 0, attempt 0 on gamma"
    )


def test_a_failure_there_is_the_exit_code_here(hosts: list[Host], servers: list[Run], keys: Path) -> None:
    failing = SAY_WHO + "import os, time\nraise SystemExit(7) if os.environ['RANK'] == '1' else time.sleep(60)\n"
    run = launch_by_ssh(hosts[0], keys, '{"alpha": 1, "beta": 1}', failing)
    assert run.wait(SOON_S) == 7, run.text
    all_say([run], "[alpha] launch: rank 1 on beta")


@pytest.mark.parametrize("end", ["killed", "cut", "interrupted"])
def test_everything_ends_with_it_on_every_host(hosts: list[Host], servers: list[Run], keys: Path, end: str) -> None:
    run = launch_by_ssh(hosts[0], keys, '{"alpha": 1, "beta": 1}', WAIT)
    run.wait_for("attempt 0 on beta", SOON_S)
    if end == "killed":
        run.process.kill()
    elif end == "cut":
        hosts[1].cut()
    else:
        run.process.terminate()
    until(lambda: not launchers(hosts[1]) and not hosts[0].pids(), SOON_S, lambda: f"an end everywhere: {run.text}")
    hosts[1].mend()


def test_a_host_that_ssh_cannot_reach_is_named_with_a_line_to_try(hosts: list[Host], servers: list[Run], keys: Path) -> None:
    run = launch_by_ssh(hosts[0], keys, '{"alpha": 1, "delta": 1}', WAIT)
    assert run.wait(SOON_S) == 2, run.text
    all_say([run], "delta: ssh cannot start the launch there", "Connection refused", "ssh delta true")
