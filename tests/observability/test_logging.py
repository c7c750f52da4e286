"""Loggers and their configuration."""

import json

import pytest
import structlog

from tollkeeper.observability.logging import configure, logger


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
