"""Which values of a policy are taken."""

from typing import Any

import pytest

from tollkeeper.domain.admission import WEIGHT_MAX
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.policy import (
    BUDGETS_MAX,
    COUNT_MAX,
    MODELS_MAX,
    UNLIMITED,
    WINDOW_MAX_US,
    WINDOWS_MAX,
    Budget,
    Policy,
    TokenBucket,
    Unit,
    Window,
    validate_policy,
)


@pytest.mark.parametrize(
    "policy",
    [
        UNLIMITED,
        Policy(windows=(Window(Unit.REQUESTS, WEIGHT_MAX, WINDOW_MAX_US), Window(Unit.TOKENS, WEIGHT_MAX, 1))),
        Policy(buckets=(TokenBucket(Unit.TOKENS, WEIGHT_MAX, 75_000_000), TokenBucket(Unit.REQUESTS, 1, 1))),
        Policy(concurrency=COUNT_MAX, budgets=(Budget(0), Budget(2**53 - 1)), cost_cap_nano=0, models=("*",)),
    ],
)
def test_the_ends_of_every_range_are_taken(policy: Policy) -> None:
    validate_policy(policy)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"windows": (Window(Unit.REQUESTS, 0),)}, r"windows\[0\]\.limit"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, 0, 1),)}, r"buckets\[0\]\.rate"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, -1, 1),)}, r"buckets\[0\]\.rate"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, 1, 0),)}, r"buckets\[0\]\.burst"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, WEIGHT_MAX, 75_000_001),)}, r"buckets\[0\]\.burst"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, 1, 600_000),)}, "takes over a year"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, 1, 1, ""),)}, r"buckets\[0\]\.model"),
        ({"buckets": (TokenBucket(Unit.REQUESTS, 1, 1),) * 17}, "buckets: 17"),
        ({"windows": (Window(Unit.REQUESTS, 1), Window(Unit.REQUESTS, 2**53))}, r"windows\[1\]\.limit"),
        ({"windows": (Window(Unit.TOKENS, WEIGHT_MAX + 1),)}, r"windows\[0\]\.limit"),
        ({"windows": (Window(Unit.TOKENS, True),)}, r"windows\[0\]\.limit"),
        ({"windows": (Window(Unit.TOKENS, 1.5),)}, r"windows\[0\]\.limit"),  # type: ignore[arg-type]
        ({"windows": (Window(Unit.TOKENS, 1, model=""),)}, r"windows\[0\]\.model"),
        ({"windows": (Window(Unit.TOKENS, 1, 0),)}, r"windows\[0\]\.window_us"),
        ({"windows": (Window(Unit.TOKENS, 1, WINDOW_MAX_US + 1),)}, r"windows\[0\]\.window_us"),
        ({"windows": (Window(Unit.TOKENS, 1),) * (WINDOWS_MAX + 1)}, "windows"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 2**53}, "concurrency"),
        ({"budgets": (Budget(-1),)}, r"budgets\[0\]\.limit_nano"),
        ({"budgets": (Budget(2**53),)}, r"budgets\[0\]\.limit_nano"),
        ({"budgets": (Budget(1),) * (BUDGETS_MAX + 1)}, "budgets"),
        ({"cost_cap_nano": -1}, "cost_cap_nano"),
        ({"models": ()}, "models"),
        ({"models": ("gpt", "")}, r"models\[1\]"),
        ({"models": ("a\nb",)}, r"models\[0\]"),
        ({"models": ("a" * 201,)}, r"models\[0\]"),
        ({"models": ("a",) * (MODELS_MAX + 1)}, "models"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        validate_policy(Policy(**values))
