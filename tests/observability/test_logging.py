"""Loggers and their configuration."""

import asyncio
import json

import pytest
import structlog

from tollkeeper.observability.logging import about_request, configure, logger


def test_a_logger_made_before_the_configuration_obeys_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Rooms make theirs when they are imported; the format and level come later."""
    early = logger("room")
    before = structlog.get_config()
    try:
        configure("warning", "json")
        early.info("quiet")
        early.warning("heard", password="x")
    finally:
        structlog.configure(**before)
    out, err = capsys.readouterr()
    assert out == ""
    event = json.loads(err)
    assert (event["event"], event["room"], event["password"]) == ("heard", "room", "***")


async def test_events_name_the_request_they_belong_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two requests at once each event has the right id; what began outside of requests has none, and an id that an
    event names itself stands."""

    async def serve(request_id: str | None) -> None:
        about_request(request_id)
        await asyncio.sleep(0)
        logger("room").warning("met", of=request_id)

    before = structlog.get_config()
    try:
        configure("warning", "json")
        await asyncio.gather(serve("r1"), serve("r2"), serve(None))
        about_request("r3")
        logger("room").warning("met", of="other", request_id="other")
    finally:
        about_request(None)
        structlog.configure(**before)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(event["of"], event.get("request_id")) for event in events] == [
        *(("r1", "r1"), ("r2", "r2"), (None, None), ("other", "other"))
    ]
