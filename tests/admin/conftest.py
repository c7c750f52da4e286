"""The control plane over real parts: SQLite in a temporary directory, the memory store, the ledger."""

import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.logs.conftest import make_pipeline
from tollkeeper.admin import ControlPlane, Parts, Readiness
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.governance import Ledger, MemoryStore, StoreReader, SyncWorker
from tollkeeper.governance.logins import LoginLimits
from tollkeeper.logs.prover import LogProver
from tollkeeper.logs.reports import LogReports
from tollkeeper.logs.search import LogReader
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.observability.metrics import Metrics
from tollkeeper.storage.database import Database

TOKEN = "t" * 40
DIGEST_KEY = b"d" * 64


def now_us() -> int:
    return time.time_ns() // 1000


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Control:
    """The control plane as a client sees it, with the real parts behind it."""

    def __init__(
        self, database: Database, ledger: Ledger, sync: SyncWorker, metrics: Metrics, logs: LogStore
    ) -> None:
        self.logs = logs
        self.pipeline = make_pipeline(logs)
        self.database, self.ledger, self.sync, self.metrics = database, ledger, sync, metrics
        self.database_away = False
        self.now_us = now_us()
        """The clock of the login limiter alone."""
        self.reports_us = now_us()
        """The clock of kept reports."""
        self.later_us = 0
        """How far the clock of idempotency keys is ahead."""
        self.application = self.make(database)

    def make(self, database: Database) -> ControlPlane:
        """A control plane on this database."""
        accounts = database.accounts(DIGEST_KEY, now_us)
        parts = Parts(
            accounts=accounts,
            tokens=database.admin_tokens(DIGEST_KEY, now_us),
            audit=database.audit(now_us),
            idempotency=database.idempotency(DIGEST_KEY, lambda: now_us() + self.later_us),
            logins=LoginLimits(lambda: self.now_us),
            session_ends=database.session_ends(now_us),
            spend=database.spend,
            budgets=database.budgets,
            alerts=database.alerts,
            configuration={"secrets": {"admin_token": "***"}},
            governor=self.ledger,
            corrector=self.ledger,
            account_reader=StoreReader(
                store=self.ledger._store, spend=database.spend, ledger=self.ledger, sync=self.sync
            ),
            records_pending=lambda: 0,
            logs=LogReader(self.logs),
            reports=LogReports(self.logs, lambda: self.reports_us),
            log_accounts=LogProver(self.logs, self.pipeline.queues, self.pipeline.stats),
            sync=self.sync.sync_once,
            readiness=Readiness({"database": self.ping, "store": _ready}),
            metrics=self.metrics,
            exposition=self.exposition,
            admin_token=TOKEN,
            version="1.2.3",
            now_us=now_us,
        )
        return ControlPlane(parts)

    async def exposition(self) -> bytes:
        return self.metrics.exposition()

    async def ping(self) -> str | None:
        if self.database_away:
            raise DatabaseUnavailable("the database does not answer")
        await self.database.ping()
        return None

    async def __call__(
        self,
        method: str,
        path: str,
        json_body: Any = None,
        *,
        body: bytes | None = None,
        token: str | None = TOKEN,
        address: str = "192.0.2.1",
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, over ASGI as uvicorn speaks it."""
        if body is None:
            body = b"" if json_body is None else json.dumps(json_body).encode()
        headers = [(b"content-type", b"application/json"), (b"host", b"test")]
        if token is not None:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        headers += [(name.encode(), value.encode()) for name, value in (extra or {}).items()]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "server": ("test", 80),
            "client": (address, 1),
        }
        chunks = [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]
        sent: list[Any] = []

        async def receive() -> Any:
            if not chunks:
                return {"type": "http.disconnect"}
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.application(scope, receive, send)
        head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], head, b"".join(m.get("body", b"") for m in sent[1:]))


@pytest.fixture
async def control(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Control]:
    """A started control plane."""
    metrics = Metrics()
    migrated = tmp_path_factory.getbasetemp() / "migrated.db"
    if not migrated.exists():
        made = await Database.open(f"sqlite:///{migrated}")
        await made.migrate()
        await made.close()
    shutil.copyfile(migrated, tmp_path / "tollkeeper.db")
    database = await Database.open(f"sqlite:///{tmp_path / 'tollkeeper.db'}", pool_size=2, timeout_s=5.0)
    store = MemoryStore(now_us)
    await store.start()
    ledger = Ledger(store=store, spend=database.spend, outbox_dir=tmp_path / "outbox", metrics=metrics, now_us=now_us)
    await ledger.start()
    sync = SyncWorker(
        store=store, spend=database.spend, ledger=ledger, interval_s=300, metrics=metrics, now_us=now_us
    )
    logs = open_store((tmp_path / "logs").as_uri(), 5.0)
    yield Control(database, ledger, sync, metrics, logs)
    await ledger.stop()
    await store.stop()
    await database.close()


async def _ready() -> str | None:
    return "memory"
