"""Usage reports and exports: equal to sums made by hand, for whom they are, and harmless in a spreadsheet."""

import csv
import io
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.admin.conftest import Control
from tests.admin.test_budgets import spend
from tests.logs.conftest import NOON_US, make_pipeline, make_record
from tollkeeper.domain.csv_text import csv_text
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs import duck

DAY_US = 86_400_000_000
REPORT = "/admin/v1/reports/usage?since=2026-11-22&until=2026-11-27"


def some_records(number: int) -> list[RequestRecord]:
    rng = random.Random(7)
    return [
        make_record(
            index,
            time_us=NOON_US + rng.randrange(3) * DAY_US + rng.randrange(1000),
            key_id=rng.choice(("key_a", "key_b")),
            team_id=rng.choice((None, "team_a")),
            organisation_id=rng.choice(("org_a", "org_b")),
            model=rng.choice(("gpt-4o", "o'hara", "")),
            provider=rng.choice(("openai", "azure")),
            tags=tuple(rng.sample(("x", "y", "=1+1"), rng.randrange(3))),
            user=rng.choice((None, "ann", '"; DROP TABLE logs; --')),
            admitted=rng.random() > 0.1,
            status=rng.choice((200, 200, 200, 429, 500)),
            cost_nano=rng.randrange(10**9),
            tokens_output=rng.randrange(100),
            total_us=rng.randrange(10**6),
        )
        for index in range(number)
    ]


async def shipped(control: Control, records: list[RequestRecord]) -> None:
    for record in records:
        control.pipeline.put(record)
    await control.pipeline.start()
    await control.pipeline.stop()


def groups_of(record: RequestRecord, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """Every group that a record counts in."""
    day = f"2026-11-{23 + (record.time_us - NOON_US) // DAY_US}"
    values = {"day": day, "key": record.key_id, "team": record.team_id, "organisation": record.organisation_id}
    for tag in record.tags or (None,):
        yield tuple((values | {"tag": tag}).get(name, getattr(record, name, None)) for name in names)
        if "tag" not in names:
            return


def summed(records: list[RequestRecord], names: list[str]) -> dict[tuple[Any, ...], tuple[int, int, int, int]]:
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in records:
        for group in groups_of(record, names):
            entry = sums[group]
            entry[0] += 1
            entry[1] += not record.admitted
            entry[2] += record.cost_nano
            entry[3] += record.tokens_output
    return {group: (a, b, c, d) for group, (a, b, c, d) in sums.items()}


FIELDS = {"key": "key_id", "team": "team_id", "organisation": "organisation_id"}


def told(answer: Any, names: list[str]) -> dict[tuple[Any, ...], tuple[int, int, int, int]]:
    return {
        tuple(row[FIELDS.get(name, name)] for name in names): (
            *(row["requests"], row["refused"], row["cost_nano"], row["output_tokens"]),
        )
        for row in answer["data"]
    }


async def test_reports_are_the_sums_of_their_records(control: Control) -> None:
    """By every kind of group and filter, with names that would be SQL elsewhere; each record's tags count."""
    records = some_records(300)
    await shipped(control, records)
    for names in (["day"], ["model", "provider"], ["tag"], ["user"], ["day", "key", "tag"], ["team", "organisation"]):
        answer = (await control("GET", f"{REPORT}&limit=1000&group_by={','.join(names)}")).json
        assert told(answer, names) == summed(records, names), names
        assert (answer["has_more"], answer["total"]["requests"]) == (False, 300)
    for name, value in (("model", "o'hara"), ("user", '"; DROP TABLE logs; --'), ("tag", "=1+1"), ("provider", "x")):
        fitting = [r for r in records if (value in r.tags if name == "tag" else getattr(r, name) == value)]
        answer = (await control("GET", f"{REPORT}&group_by=day&{name}={quote(value)}")).json
        assert told(answer, ["day"]) == summed(fitting, ["day"]), name
    whole = (await control("GET", REPORT)).json
    assert len(whole["data"]) == 1 and whole["total"]["cost_nano"] == sum(r.cost_nano for r in records)
    well = sorted(r.total_us for r in records if r.admitted and r.status < 400)
    assert whole["total"]["total_ms_p50"] == pytest.approx(well[len(well) // 2] / 1000, abs=0.01 * 10**6 / 1000)
    assert whole["total"]["errors"] == sum(r.admitted and r.status >= 400 for r in records)


async def test_the_dearest_groups_come_first_and_days_in_their_order(control: Control) -> None:
    records = some_records(100)
    await shipped(control, records)
    days = (await control("GET", f"{REPORT}&group_by=day")).json["data"]
    assert [row["day"] for row in days] == ["2026-11-23", "2026-11-24", "2026-11-25"]
    answer = (await control("GET", f"{REPORT}&group_by=user&limit=2")).json
    dearest = sorted(summed(records, ["user"]).items(), key=lambda item: -item[1][2])[:2]
    assert [(row["user"],) for row in answer["data"]] == [group for group, _ in dearest]
    assert answer["has_more"] is True and answer["total"]["requests"] == 100


async def test_an_owners_report_is_over_its_keys(control: Control) -> None:
    """Filters cannot lead out of it."""
    key = (await control("POST", "/admin/v1/keys", {"name": "mine"})).json
    other = (await control("POST", "/admin/v1/keys", {"name": "other"})).json
    records = [make_record(n, key_id=key["id"] if n % 3 else other["id"], cost_nano=1) for n in range(9)]
    await shipped(control, records)
    body = {"name": "o", "role": "owner", "owns": [key["id"]]}
    secret = (await control("POST", "/admin/v1/admin-tokens", body)).json["secret"]
    answer = (await control("GET", f"{REPORT}&group_by=key", token=secret)).json
    assert [(row["key_id"], row["key_name"], row["requests"]) for row in answer["data"]] == [(key["id"], "mine", 6)]
    assert answer["total"]["requests"] == 6
    everything = (await control("GET", f"{REPORT}&group_by=key")).json
    assert {row["key_name"]: row["requests"] for row in everything["data"]} == {"mine": 6, "other": 3}
    assert (await control("GET", f"{REPORT}&key=other", token=secret)).status == 404


async def test_an_answer_is_kept_for_a_moment(control: Control) -> None:
    """So that a page may ask for several, again and again; then new records are in it."""
    await shipped(control, [make_record(1, cost_nano=5)])
    assert (await control("GET", REPORT)).json["total"]["cost_nano"] == 5
    control.pipeline = make_pipeline(control.logs, "gw2")
    await shipped(control, [make_record(2, cost_nano=7)])
    assert (await control("GET", REPORT)).json["total"]["cost_nano"] == 5
    control.reports_us += 16_000_000
    assert (await control("GET", REPORT)).json["total"]["cost_nano"] == 12


async def test_without_duckdb_it_is_said(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    refused = await control("GET", REPORT)
    assert (refused.status, refused.json["error"]["code"]) == (501, "not_installed")
    assert "pip install 'tollkeeper[query]'" in refused.json["error"]["message"]
    monkeypatch.undo()
    assert duck.load("test") is not None


async def test_csv_of_reports_and_months(control: Control) -> None:
    """The same rows; what a spreadsheet would compute has an apostrophe before it, amounts stay numbers."""
    await shipped(control, some_records(50))
    answer = await control("GET", f"{REPORT}&group_by=tag,model&format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="usage-report.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert "'=1+1" in {row["tag"] for row in rows} and "=1+1" not in {row["tag"] for row in rows}
    await control("POST", "/admin/v1/keys", {"name": "@SUM(A1)"})
    await spend(control, "@SUM(A1)", 5)
    months = await control("GET", "/admin/v1/usage?format=csv")
    (row,) = csv.DictReader(io.StringIO(months.body.decode()))
    assert (row["key_name"], row["cost_usd"], row["cost_nano"]) == ("'@SUM(A1)", "0.000000005", "5")


def test_cells_that_are_formulas_are_escaped() -> None:
    for text in ("=1", "+1", "-1", "@a", "\tx", "\rx", "  =1"):
        assert csv_text(["a"], [{"a": text}]).splitlines()[1].lstrip('"').startswith("'"), text
    assert csv_text(["cost_usd", "n", "none"], [{"cost_usd": "-1.50", "n": -3}]) == "cost_usd,n,none\r\n-1.50,-3,\r\n"
    assert csv_text(["cost_usd"], [{"cost_usd": "-1+cmd|x"}]) == "cost_usd\r\n'-1+cmd|x\r\n"


async def test_months_of_teams_and_organisations(control: Control) -> None:
    """Exact, page by page, and for an owner its own alone."""
    await control("POST", "/admin/v1/organisations", {"name": "acme"})
    team = (await control("POST", "/admin/v1/teams", {"name": "red", "organisation": "acme"})).json
    for name in ("a", "b"):
        await control("POST", "/admin/v1/keys", {"name": name, "team": "red"})
        await spend(control, name, 250_000_000)
    await control("POST", "/admin/v1/keys", {"name": "alone"})
    await spend(control, "alone", 1_000_000_000)
    for by, name in (("team", "red"), ("organisation", "acme")):
        (row,) = (await control("GET", f"/admin/v1/usage?by={by}")).json["data"]
        assert (row[f"{by}_name"], row["cost_usd"], row["requests"]) == (name, "0.50", 2)
        assert (await control("GET", f"/admin/v1/usage?by={by}&{by}={name}")).json["data"] == [row]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await control("GET", f"/admin/v1/usage?limit=2{cursor}")).json
        seen += [row["key_name"] for row in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&starting_after={quote(page['data'][-1]['id'])}"
    assert sorted(seen) == ["a", "alone", "b"]
    body = {"name": "o", "role": "owner", "owns": [team["id"]]}
    secret = (await control("POST", "/admin/v1/admin-tokens", body)).json["secret"]
    own = (await control("GET", "/admin/v1/usage", token=secret)).json["data"]
    assert sorted(row["key_name"] for row in own) == ["a", "b"]
    assert (await control("GET", "/admin/v1/usage?by=organisation", token=secret)).json["data"] == []
