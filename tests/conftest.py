"""The order of the run, and how many processes share it."""

import os

import pytest

LONGEST = (
    *(
        "test_money_under_fire.py",
        "observability/test_prometheus.py",
        "test_replay.py",
        "test_outage.py",
        "test_rolling_upgrade.py",
    ),
    *("logs/test_overflow_latency.py", "app/test_supervisor.py", "billing/test_killed.py"),
)
"""Files of few tests that take long come first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay together; all but the longest in the order in which they were found."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((n for n, name in enumerate(LONGEST) if path.endswith(f"/tests/{name}")), len(LONGEST))

    items.sort(key=rank)


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: tests wait for servers for half of their time."""
    return (os.cpu_count() or 1) + 1
