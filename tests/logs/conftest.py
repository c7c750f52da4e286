"""Stores of every kind, and records to put into them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.azure import AzuriteServer, azurite_server
from tests.servers.gcs import GoogleServer, gcs_server
from tests.servers.redis import own_redis, redis_cluster, redis_server
from tests.servers.s3 import S3Server, fresh_rclone, moto_server, rclone_server, s3_server
from tollkeeper.domain.ports import ScriptStore
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings

__all__ = [
    "azurite_server",
    "fresh_rclone",
    "gcs_server",
    "moto_server",
    "own_redis",
    "rclone_server",
    "redis_cluster",
    "redis_server",
    "s3_server",
]

NOON_US = 1_795_435_200_000_000
"""2026-11-23 12:00 UTC."""
KINDS = ("folder", "moto", "rclone", "azurite", "gcs")


def make_record(index: int = 0, **fields: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": f"req_{index}",
        "time_us": NOON_US + index,
        "key_id": "key_1",
        "key_name": "demo",
        "organisation_id": "org_1",
        "endpoint": "/v1/chat/completions",
        "dialect": "openai",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "status": 200,
        "tokens_input": index,
    }
    return RequestRecord(**values | fields)


def make_pipeline(
    store: LogStore,
    producer: str = "gw1",
    *,
    client: ScriptStore | None = None,
    spool_root: Path | None = None,
    **settings: Any,
) -> LogPipeline:
    defaults: dict[str, Any] = {"flush_interval_s": 0.05, "timeout_s": 5.0}
    return LogPipeline(
        settings=LogSettings(**defaults | settings),
        url="",
        producer=producer,
        metrics=Metrics(),
        now_us=lambda: NOON_US,
        store=store,
        client=client,
        spool_root=spool_root,
    )


def store_at(
    server: S3Server | AzuriteServer | GoogleServer,
    url: str | None = None,
    timeout_s: float = 5.0,
    port: int | None = None,
) -> LogStore:
    environ = dict(server.environ)
    if port is not None:
        environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    return open_store(url or server.url(), timeout_s, environ)


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for the pipeline's task to get there."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LogStore:
    """One of each kind, empty."""
    if request.param == "folder":
        return open_store((tmp_path / "logs").as_uri(), 5.0)
    return store_at(request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def folder(tmp_path: Path) -> LogStore:
    return open_store((tmp_path / "logs").as_uri(), 5.0)
