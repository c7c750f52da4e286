"""What `tollkeeper doctor` examines: one function a part, each with a finding and, if it is bad, a remedy."""

import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tollkeeper.domain.errors import ConfigurationError, TollkeeperError
from tollkeeper.domain.findings import Finding, State
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import DEFAULT_FILE, Settings, load, mask_url, provider_key

FREE_BYTES_WARN: Final = 2**30
FREE_BYTES_FAIL: Final = 64 * 2**20


async def examine(config: Path | None) -> list[Finding]:
    """All findings, in the order an operator should mend them. Settings that cannot be read are the only one then."""
    try:
        settings = load(config)
    except ConfigurationError as error:
        return [Finding("settings", "fail", str(error))]
    file = config or (Path(DEFAULT_FILE) if _exists(DEFAULT_FILE) else None)
    source = "the environment and defaults" if file is None else f"{file} and the environment"
    findings = [Finding("settings", "ok", f"read from {source}")]
    findings += _providers(settings)
    findings += _data_dir(settings)
    findings += [finding async for finding in _database(settings)]
    findings += [finding async for finding in _store(settings)]
    findings += [finding async for finding in _log_store(settings)]
    return findings


def _providers(settings: Settings) -> list[Finding]:
    if not settings.providers:
        remedy = "set OPENAI_API_KEY or ANTHROPIC_API_KEY, or write a [providers.<name>] table; --demo needs none"
        return [Finding("providers", "warn", "none is configured", remedy)]
    findings = []
    for name, provider in settings.providers.items():
        try:
            key = provider_key(name, provider)
        except ConfigurationError as error:
            findings.append(Finding(f"provider {name}", "fail", str(error)))
            continue
        text = "key present" if key else "no key configured, requests go upstream without one"
        findings.append(Finding(f"provider {name}", "ok", text))
    return findings


def _data_dir(settings: Settings) -> list[Finding]:
    path = settings.data_dir
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    remedy = "make it writable, or set TOLLKEEPER_DATA_DIR"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [Finding("data directory", "fail", f"{path} cannot be written", remedy)]
    free = shutil.disk_usage(existing).free
    text = f"{path} {'is writable' if path.exists() else 'will be made'}, {free / 2**30:.1f} GiB free"
    state: State = "fail" if free < FREE_BYTES_FAIL else "warn" if free < FREE_BYTES_WARN else "ok"
    room = "" if state == "ok" else "make room: the outbox lives here, and a full disk stops admissions"
    findings = [Finding("data directory", state, text, room)]
    open_to_others = [
        name
        for name in ("digest-key", "admin-token")
        if (path / name).exists() and stat.S_IMODE((path / name).stat().st_mode) & 0o077
    ]
    if open_to_others:
        text = f"others on this machine can read {' and '.join(open_to_others)}"
        findings.append(Finding("secrets", "warn", text, "chmod 600 them"))
    return findings


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    from tollkeeper.storage.database import Database

    url = mask_url(settings.database_url)
    if settings.database_url.startswith("sqlite") and not _exists(settings.database_url.partition(":///")[2]):
        yield Finding("database", "ok", f"{url} will be made at the first start")
        return
    database = await Database.open(settings.database_url, pool_size=1, timeout_s=settings.database.timeout_s)
    try:
        await database.ping()
        yield Finding("database", "ok", f"{url} answers")
        yield await _schema(database)
    except TollkeeperError as error:
        yield Finding("database", "fail", f"{url}: {error}", "check DATABASE_URL and that the server runs")
    finally:
        await database.close()


async def _schema(database: Any) -> Finding:
    try:
        current = await database.schema_is_current()
    except ConfigurationError as error:
        return Finding("schema", "fail", str(error), "run the release that made it, or a newer one")
    if not current:
        return Finding("schema", "fail", "behind this version", "run `tollkeeper migrate`")
    return Finding("schema", "ok", "current")


def _exists(path: str) -> bool:
    return Path(path).exists()


async def _store(settings: Settings) -> AsyncIterator[Finding]:
    if settings.embedded:
        yield Finding("store", "ok", "this process's memory: for one gateway process (set REDIS_URL for more)")
        return
    from tollkeeper.cli.common import now_us
    from tollkeeper.governance.doctor import inspect

    for finding in await inspect(settings, now_us):
        yield finding


async def _log_store(settings: Settings) -> AsyncIterator[Finding]:
    from tollkeeper.cli.common import now_us
    from tollkeeper.logs.pipeline import LogPipeline

    url = mask_url(settings.logs_url)
    if settings.logs.url is None and not settings.data_dir.exists():
        yield Finding("log store", "ok", f"{url} will be made at the first start")
        return
    try:
        pipeline = LogPipeline(
            settings=settings.logs, url=settings.logs_url, producer="doctor", metrics=Metrics(), now_us=now_us
        )
        await pipeline.ping()
    except TollkeeperError as error:
        yield Finding("log store", "fail", f"{url}: {error}", "check LOG_STORE_URL, its credentials and permissions")
    else:
        yield Finding("log store", "ok", f"{url} takes objects")
