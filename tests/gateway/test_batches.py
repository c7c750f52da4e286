"""Batches: bounded line by line, charged at their bound when they are made, at the truth when it is told."""

from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import Reply, Stand, chat
from tests.gateway.test_media import post_form
from tollkeeper.domain.admission import LimitKind
from tollkeeper.domain.policy import Budget, Policy

BUDGET = Policy(budgets=(Budget(10**9),))
URL = "/v1/chat/completions"


def lines(*bodies: dict[str, Any], url: str = URL) -> bytes:
    return b"\n".join(
        msgspec.json.encode({"custom_id": f"{n}", "method": "POST", "url": url, "body": body})
        for n, body in enumerate(bodies)
    )


async def upload(stand: Stand, content: bytes) -> Reply:
    return await post_form(stand, "/files", {"purpose": "batch"}, file=("in.jsonl", content))


async def create(stand: Stand, file: str) -> Reply:
    return await stand.post({"input_file_id": file, "endpoint": URL, "completion_window": "24h"}, "/batches")


async def spent(stand: Stand) -> int:
    """Nano-dollars that the key has spent, of its budget's own account."""
    states = await stand.governor.limits(stand.principal)
    return next(state.used for state in states if state.kind is LimitKind.BUDGET)


async def test_a_batch_from_its_bound_to_its_truth(stand: Stand) -> None:
    stand.key(BUDGET)
    asked = chat("[[sim input=100 output=50]]", max_tokens=1000)
    file = await upload(stand, lines(asked, asked))
    assert file.status == 200, file.body
    made = await create(stand, file.json["id"])
    assert made.status == 200 and made.json["status"] == "validating", made.body
    end = stand.governor.ends[-1]
    assert end.kind == "presumed" and end.cost_nano >= 2 * 1000 * 600, "the bound of both lines"
    assert await spent(stand) == end.cost_nano
    done = await stand.post(None, f"/batches/{made.json['id']}", method="GET")
    assert done.json["status"] == "completed", done.body
    truth = 2 * (100 * 75 + 50 * 300)
    assert await spent(stand) == truth, "at the prices of batches"
    await stand.post(None, f"/batches/{made.json['id']}", method="GET")
    assert await spent(stand) == truth, "once"
    output = await stand.post(None, f"/files/{done.json['output_file_id']}/content", method="GET")
    assert output.status == 200 and output.body.count(b"custom_id") == 2
    listed = (await stand.post(None, "/batches", method="GET")).json["data"]
    assert [(its["id"], its["status"]) for its in listed] == [(made.json["id"], "completed")]


async def test_a_cancelled_batch_costs_nothing(stand: Stand) -> None:
    stand.key(BUDGET)
    file = await upload(stand, lines(chat(max_tokens=10)))
    made = await create(stand, file.json["id"])
    assert await spent(stand) > 0
    reply = await stand.post(None, f"/batches/{made.json['id']}/cancel")
    assert reply.status == 200 and await spent(stand) == 0


async def test_others_have_none_of_it(stand: Stand) -> None:
    """Neither the batch nor its files, the output included."""
    file = (await upload(stand, lines(chat(max_tokens=10)))).json["id"]
    made = (await create(stand, file)).json["id"]
    output = (await stand.post(None, f"/batches/{made}", method="GET")).json["output_file_id"]
    stand.key()
    served = stand.simulator.served.last
    assert (await create(stand, file)).status == 404
    for method, path in (
        ("GET", f"/batches/{made}"),
        ("POST", f"/batches/{made}/cancel"),
        ("GET", f"/files/{output}/content"),
    ):
        assert (await stand.post(None, path, method=method)).status == 404
    assert (await stand.post(None, "/batches", method="GET")).json["data"] == []
    assert stand.simulator.served.last == served


async def test_what_has_no_bound_is_refused_for_budgets(stand: Stand) -> None:
    """The message names the line; a key without a budget may do it."""
    body = lines(chat(max_tokens=10), chat())
    stand.key(BUDGET)
    file = await upload(stand, body)
    refused = await create(stand, file.json["id"])
    assert refused.status == 400 and "line 2: it states no limit" in refused.json["error"]["message"]
    unpriced = await upload(stand, lines(chat(model="local-thing", max_tokens=10)))
    refused = await create(stand, unpriced.json["id"])
    assert refused.status == 400 and "'local-thing' is not known" in refused.json["error"]["message"]
    stand.key()
    file = await upload(stand, body)
    assert (await create(stand, file.json["id"])).status == 200


async def test_a_batch_above_the_budget_is_refused(stand: Stand) -> None:
    stand.key(Policy(budgets=(Budget(1_000_000),)))
    file = await upload(stand, lines(*[chat(max_tokens=1000)] * 3))
    served = stand.simulator.served.last
    refused = await create(stand, file.json["id"])
    assert refused.status == 400 and refused.json["error"]["code"] == "request_exceeds_limit", refused.body
    assert stand.simulator.served.last == served


async def test_cost_caps_are_of_each_line(stand: Stand) -> None:
    stand.key(Policy(cost_cap_nano=100_000))
    few = await upload(stand, lines(*[chat(max_tokens=100)] * 5))
    assert (await create(stand, few.json["id"])).status == 200
    large = await upload(stand, lines(chat(max_tokens=1000)))
    assert (await create(stand, large.json["id"])).json["error"]["code"] == "cost_cap_exceeded"


async def test_allowed_models_are_those_of_the_lines(stand: Stand) -> None:
    stand.key(Policy(models=("gpt-4.1*",)))
    file = await upload(stand, lines(chat(max_tokens=10)))
    assert (await create(stand, file.json["id"])).status == 403


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n \n",
        b"not json",
        b'{"custom_id":"1","method":"POST","url":"/v1/audio/speech","body":{}}',
        b'{"custom_id":"1","method":"GET","url":"/v1/chat/completions","body":{}}',
        b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o"}}',
        lines(chat(model="no-such-model")),
        lines(chat(model="house-model")),
        lines(chat(model="sim/gpt-4o-mini")),
        lines({"model": "gpt-4o-mini", "input": "x", "previous_response_id": "resp_x"}, url="/v1/responses"),
    ],
)
async def test_files_that_are_no_batch(stand: Stand, content: bytes) -> None:
    """Nothing is sent that could not be bounded, or that would be served under another name."""
    reply = await upload(stand, content)
    assert reply.status in (400, 404), reply.body
    assert stand.simulator.served.last == 0


async def test_files_that_were_not_read_are_no_batch(stand: Stand) -> None:
    """Uploaded for another purpose, its lines have no bound."""
    file = await post_form(stand, "/files", {"purpose": "user_data"}, file=("in.jsonl", lines(chat(max_tokens=10))))
    refused = await create(stand, file.json["id"])
    assert refused.status == 400 and "purpose 'batch'" in refused.json["error"]["message"]
    assert (await stand.post({"input_file_id": 7}, "/batches")).status == 400
