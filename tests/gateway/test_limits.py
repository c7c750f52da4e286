"""Limits for some models, per end user and in shadow, as clients meet them."""

import pytest

from tests.gateway.conftest import Stand, chat, message
from tollkeeper.domain.policy import Policy, TokenBucket, Unit, Window


def requests(limit: int, **what: object) -> Policy:
    return Policy(windows=(Window(Unit.REQUESTS, limit, **what),))  # type: ignore[arg-type]


async def statuses(stand: Stand, *bodies: dict[str, object], **headers: str) -> list[int]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [(await stand.post(body, headers=sent)).status for body in bodies]


async def test_limit_for_some_models_counts_them_alone(stand: Stand) -> None:
    stand.key(requests(1, model="gpt-4o-*"))
    bodies = [chat(model=model) for model in ("gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4o", "gpt-4o-mini")]
    assert await statuses(stand, *bodies) == [200, 200, 200, 200, 429]


async def test_limit_per_end_user(stand: Stand) -> None:
    """Each end user has a window of their own, by the body's `user` or the header; requests without one share one."""
    stand.key(requests(1, per_user=True))
    assert await statuses(stand, chat(user="anna"), chat(user="bert"), chat(), chat(user="anna"), chat()) == [
        200,
        200,
        200,
        429,
        429,
    ]
    assert await statuses(stand, chat(user="carl"), chat(user="dora"), x_tollkeeper_user="emil") == [200, 429]
    reply = await stand.post(message(metadata={"user_id": "anna"}), "/messages")
    assert reply.status == 429, "the same end user in the other dialect"
    long = "u" * 300
    assert await statuses(stand, chat(user=long + "1"), chat(user=long + "2"), chat(user=long + "1")) == [
        200,
        200,
        429,
    ]


async def test_shadow_reports_and_never_refuses(stand: Stand) -> None:
    """Counted in a metric, told in a header and in the record; the client is served."""
    stand.key(
        Policy(
            windows=(Window(Unit.REQUESTS, 1, shadow=True), Window(Unit.REQUESTS, 100)),
            concurrency=1,
            concurrency_shadow=True,
        )
    )
    first, second = await stand.post(chat()), await stand.post(chat())
    assert (first.status, second.status) == (200, 200)
    assert "x-tollkeeper-shadow" not in first.headers
    assert second.headers["x-tollkeeper-shadow"] == "key/requests"
    assert second.headers["x-ratelimit-limit-requests"] == "100", "headers tell the limit that is enforced"
    assert stand.count("tollkeeper_shadow_refusals_total") == 1
    await stand.settled()
    assert [record.shadow_refusals for record in stand.records.all] == [(), ("key/requests",)]


@pytest.mark.parametrize("window_us", [1_000_000, 3_600_000_000])
async def test_windows_of_any_length(stand: Stand, window_us: int) -> None:
    stand.key(requests(2, window_us=window_us))
    first, second, third = [await stand.post(chat()) for _ in range(3)]
    assert (first.status, second.status) == (200, 200)
    if window_us > 1_000_000:
        assert third.status == 429 and 3590 <= int(third.headers["retry-after"]) <= 3602


async def test_token_bucket(stand: Stand) -> None:
    """At most its burst at once; the headers tell what is left."""
    stand.key(Policy(buckets=(TokenBucket(Unit.REQUESTS, 1, 2),)))
    first = await stand.post(chat())
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == (
        "2",
        "1",
    )
    assert await statuses(stand, chat(), chat()) == [200, 429]
