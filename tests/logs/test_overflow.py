"""A slice of the overflow campaign."""

from pathlib import Path

import pytest

from tests.logs.overflow import overflow
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tollkeeper.domain.log_account import count
from tollkeeper.logs import shipper


async def test_with_the_store_away_the_newest_are_kept_and_drops_counted_exactly(
    own_redis: RedisServer, moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40,000 records into 4,000; then the store comes back. What was leased before the flood is kept, too."""
    monkeypatch.setattr(shipper, "BACKOFF_MAX_S", 0.2)
    result = await overflow(40_000, 4_000, own_redis, moto_server, tmp_path)
    report = result.report
    assert result.complete and report.last == 40_000
    assert (report.records, result.dropped, count(report.dropped)) == (4_000, 36_000, 36_000)
    newest = 40_000 - 4_000 // 2
    assert all(last <= newest for _, last in report.dropped)
    assert result.redis_peak_bytes < result.redis_full_bytes + 8 * 2**20, "buffers of the append-only file included"
    assert result.process_peak_bytes < result.process_full_bytes + 32 * 2**20
