"""Log records by the admin API: the reader's pages and filters, with clear words for what cannot be asked."""

from urllib.parse import quote

import pytest

from tests.admin.conftest import Control
from tests.logs.conftest import NOON_US, make_pipeline, make_record


async def ship(control: Control) -> None:
    pipeline = make_pipeline(control.logs)
    for number in range(10):
        user = "ann" if number % 2 else None
        pipeline.put(make_record(number, user=user, request_body="{}", time_us=NOON_US + number * 1_000_000))
    await pipeline.start()
    await pipeline.stop()


async def test_pages_lead_from_the_newest_to_the_oldest(control: Control) -> None:
    await ship(control)
    seen: list[int] = []
    path: str | None = "/admin/v1/logs?limit=4"
    while path is not None:
        answer = await control("GET", path)
        assert answer.status == 200
        seen += [record["tokens_input"] for record in answer.json["records"]]
        cursor = answer.json["next_cursor"]
        path = None if cursor is None else f"/admin/v1/logs?limit=4&cursor={quote(cursor)}"
    assert seen == list(range(9, -1, -1))


async def test_filters_and_bodies(control: Control) -> None:
    await ship(control)
    query = "since=2026-11-23T12:00:02Z&until=2026-11-23T12:00:07Z&user=ann&key=demo"
    (one, two) = (await control("GET", f"/admin/v1/logs?{query}")).json["records"]
    assert (one["tokens_input"], two["tokens_input"], one["request_body"]) == (5, 3, None)
    (found,) = (await control("GET", "/admin/v1/logs?request_id=req_4&bodies=true")).json["records"]
    assert found["request_body"] == "{}"
    assert (await control("GET", "/admin/v1/logs?errors=true")).json == {"records": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "param"),
    [("since=yesterday", "since"), ("limit=0", "limit"), ("limit=101&bodies=1", "limit"), ("status=x", "status"),
     ("cursor=x", "cursor"), ("limit=many", "limit")],
)  # fmt: skip
async def test_what_cannot_be_asked_is_said(control: Control, query: str, param: str) -> None:
    answer = await control("GET", f"/admin/v1/logs?{query}")
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_only_with_the_admin_token(control: Control) -> None:
    assert (await control("GET", "/admin/v1/logs", token=None)).status == 401
