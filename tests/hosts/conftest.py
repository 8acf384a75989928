"""Real hosts for tests: each test gets four machines with clean folders, and leaves no process on any of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .fleet import Host, fleet, until, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if "hosts" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.hosts)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def machines() -> Iterator[list[Host]]:
    with fleet() as hosts:
        yield hosts


@pytest.fixture
def hosts(machines: list[Host], tmp_path: Path) -> Iterator[list[Host]]:
    for host in machines:
        host.folder = tmp_path / host.name
        host.folder.mkdir()
        host.runs = []
    yield machines
    for host in machines:
        host.mend()
        left = host.pids()
        host.kill()
        for run in host.runs:
            run.process.wait()
        until(lambda host=host: not host.pids(), 10, lambda host=host: f"an empty {host.name}")  # type: ignore[misc]
        assert not left, f"processes survived on {host.name}: {left}\n" + "\n".join(run.text for run in host.runs)
