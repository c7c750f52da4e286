"""A slice of the campaign of `overflow_latency.py`: that it is right, not how fast it is."""

from pathlib import Path

from tests.logs.overflow_latency import measure
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server


async def test_a_gateway_serves_everybody_while_its_queue_overflows_and_the_store_is_away(
    own_redis: RedisServer, moto_server: S3Server, tmp_path: Path
) -> None:
    """It even starts without the store; every record is then delivered once or counted as dropped."""
    (tmp_path / "other").mkdir()
    other = RedisServer(tmp_path / "other")
    other.start()
    try:
        outcome = await measure(20_000, 2_000, tmp_path, own_redis, other, moto_server, 0.5)
    finally:
        other.stop()
    assert outcome.differences == 0
    assert outcome.shipped_failures > 0
    flood = outcome.report.producers["flood"]
    (gateway,) = (p for name, p in outcome.report.producers.items() if name != "flood")
    served = outcome.quiet.requests + outcome.busy.requests + outcome.overflowing.requests
    assert (flood.last, gateway.last) == (20_000, served)
    delivered = flood.records + gateway.records
    assert delivered <= 2_000 and outcome.dropped == 20_000 + served - delivered
