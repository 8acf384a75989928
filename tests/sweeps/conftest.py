"""A real server without a history file, for all tests of sweeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_train_parallel.sweeps.folder import SharedFolder

from .simulated import Simulated


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an embedded server for all tests, and its end."""
    from temporalio.testing import WorkflowEnvironment

    from bert_train_parallel.sweeps.server import find_cli

    loop = asyncio.new_event_loop()
    environment = loop.run_until_complete(
        WorkflowEnvironment.start_local(dev_server_existing_path=find_cli(), dev_server_log_level="error")
    )
    try:
        yield environment.client.service_client.config.target_host
    finally:
        loop.run_until_complete(environment.shutdown())
        loop.close()


@pytest.fixture
def simulated(tmp_path: Path) -> Simulated:
    return Simulated(SharedFolder(tmp_path))
