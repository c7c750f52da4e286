"""Stored objects: made by one organisation, and there for no other. Each attack is made with ids that exist."""

from typing import Any

import pytest

from tests.gateway.conftest import Stand, chat, message
from tests.gateway.test_media import post_form
from tollkeeper.domain.objects import ObjectKind
from tollkeeper.domain.policy import Budget, Policy, Unit, Window


async def respond(stand: Stand, text: str = "hello", **fields: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "input": text, **fields}
    reply = await stand.post(body, "/responses")
    assert reply.status == 200, reply.body
    return dict(reply.json)


async def upload(stand: Stand, content: bytes = b"data", purpose: str = "user_data") -> str:
    reply = await post_form(stand, "/files", {"purpose": purpose}, file=("a.txt", content))
    assert reply.status == 200, reply.body
    return str(reply.json["id"])


def owner_of(stand: Stand) -> str:
    return f"org_test{stand.keys}"


async def test_the_owner_has_all_of_it(stand: Stand) -> None:
    made = await respond(stand)
    id_ = made["id"]
    assert (await stand.post(None, f"/responses/{id_}", method="GET")).json == made
    items = await stand.post(None, f"/responses/{id_}/input_items?limit=3&order=asc", method="GET")
    assert items.json["data"][0]["content"][0]["text"] == "hello"
    following = await respond(stand, "again", previous_response_id=id_)
    named = [{"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "x"}]
    await respond(stand, named)  # type: ignore[arg-type]
    assert (await stand.post(None, f"/responses/{following['id']}/cancel")).json["status"] == "cancelled"
    deleted = await stand.post(None, f"/responses/{id_}", method="DELETE")
    assert deleted.json["deleted"] is True
    assert (await stand.post(None, f"/responses/{id_}", method="GET")).status == 404


async def test_others_have_none_of_it(stand: Stand) -> None:
    """404, as for what does not exist, and the provider is not asked."""
    made, file = await respond(stand), await upload(stand)
    id_, item = made["id"], made["output"][0]["id"]
    stand.key()
    served = stand.simulator.served.last
    for method, path in (
        ("GET", f"/responses/{id_}"),
        ("DELETE", f"/responses/{id_}"),
        ("POST", f"/responses/{id_}/cancel"),
        ("GET", f"/responses/{id_}/input_items"),
        ("GET", f"/files/{file}"),
        ("GET", f"/files/{file}/content"),
        ("DELETE", f"/files/{file}"),
    ):
        reply = await stand.post(None, path, method=method)
        assert reply.status == 404 and reply.json["error"]["code"] == "not_found", (path, reply.body)
    part = {"type": "input_file", "file_id": file}
    image = {"type": "input_image", "file_id": file}
    for fields in (
        {"previous_response_id": id_},
        {"input": [{"type": "item_reference", "id": item}]},
        {"input": [{"id": item}]},
        {"input": [{"type": "message", "id": item, "role": "assistant"}]},
        {"input": [{"type": "reasoning", "id": item, "summary": []}]},
        {"input": [{"type": "image_generation_call", "id": item}]},
        {"input": [{"type": "computer_call", "id": item}]},
        {"input": [{"role": "user", "content": [part]}]},
        {"input": [{"role": "user", "content": [image]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [part]}]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file]}}]},
    ):
        body = {"model": "gpt-4o-mini", "input": "x"} | fields
        reply = await stand.post(body, "/responses")
        assert reply.status == 404 and reply.json["error"]["code"] == "not_found", (fields, reply.body)
    content = [{"type": "file", "file": {"file_id": file}}]
    reply = await stand.post(chat(messages=[{"role": "user", "content": content}]))
    assert reply.status == 404, reply.body
    document = [{"type": "document", "source": {"type": "file", "file_id": file}}]
    for path in ("/messages", "/messages/count_tokens"):
        reply = await stand.post(message(messages=[{"role": "user", "content": document}]), path)
        assert reply.status == 404 and reply.json["error"]["type"] == "not_found_error", reply.body
    assert stand.simulator.served.last == served


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4o-mini","input":"x","previous\\u005fresponse_id":"%b"}',
        b'{"model":"gpt-4o-mini","input":"x","previous_response_id":null,"previous_response_id":"%b"}',
        b'{"model":"gpt-4o-mini","input":[{"role":"user","content":[{"type":"input_file","file\\u005fid":"%b"}]}]}',
    ],
)
async def test_spellings_that_hide_a_reference(stand: Stand, body: bytes) -> None:
    """Escaped names, and names given twice: of those the last goes upstream, alone."""
    id_ = (await respond(stand))["id"]
    stand.key()
    served = stand.simulator.served.last
    reply = await stand.post(body % id_.encode(), "/responses")
    assert reply.status in (400, 404), reply.body
    assert stand.simulator.served.last == served


async def test_the_clients_own_data_are_no_references(stand: Stand) -> None:
    """Arguments of tools, schemas and metadata may have any names and values."""
    call = {"type": "tool_use", "id": "t", "name": "read", "input": {"file_id": "file-1", "container": "c"}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}]
    tools = [{"name": "read", "input_schema": {"properties": {"file_id": {"const": "file-1"}}}}]
    reply = await stand.post(message(messages=messages, tools=tools), "/messages")
    assert reply.status == 200, reply.body
    await respond(stand, "the file_id and the conversation", metadata={"file_id": "file-1"})


@pytest.mark.parametrize(
    "fields",
    [
        {"conversation": "conv_1"},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
    ],
)
async def test_what_cannot_be_isolated_is_off_in_requests(stand: Stand, fields: dict[str, Any]) -> None:
    reply = await stand.post({"model": "gpt-4o-mini", "input": "x"} | fields, "/responses")
    assert reply.status == 404 and "not served here" in reply.json["error"]["message"], reply.body


@pytest.mark.parametrize(
    "path",
    ["/vector_stores", "/assistants", "/threads/t/runs", "/fine_tuning/jobs", "/conversations", "/messages/batches"],
)
async def test_routes_that_cannot_be_isolated_are_off(stand: Stand, path: str) -> None:
    for method in ("GET", "POST"):
        reply = await stand.post({} if method == "POST" else None, path, method=method)
        assert reply.status == 404 and b"are off" in reply.body, reply.body


async def test_stored_audio_is_off(stand: Stand) -> None:
    """An earlier answer's sound, by its id."""
    earlier = {"role": "assistant", "audio": {"id": "audio_1"}}
    reply = await stand.post(chat(messages=[{"role": "user", "content": "x"}, earlier]))
    assert reply.status == 404 and "'audio' is not served" in reply.json["error"]["message"]


async def test_a_stream_is_stored_too(stand: Stand) -> None:
    reply = await stand.post({"model": "gpt-4o-mini", "input": "x", "stream": True}, "/responses")
    id_ = reply.body.partition(b'"id":"')[2].partition(b'"')[0].decode()
    got = await stand.post(None, f"/responses/{id_}", method="GET")
    assert got.status == 200 and got.json["id"] == id_
    stand.key()
    assert (await stand.post(None, f"/responses/{id_}", method="GET")).status == 404


async def test_what_is_not_stored_is_not_recorded(stand: Stand) -> None:
    await respond(stand, store=False)
    assert not stand.objects.all


async def test_files(stand: Stand) -> None:
    """Upload, list (only one's own, in pages), get, content, delete."""
    first, second, third = [await upload(stand, b"content %d" % n) for n in range(3)]
    mine = stand.secret
    stand.key()
    other = await upload(stand)
    assert [its["id"] for its in (await stand.post(None, "/files", method="GET")).json["data"]] == [other]
    stand.secret = mine
    page = (await stand.post(None, "/files?limit=2", method="GET")).json
    assert [its["id"] for its in page["data"]] == [third, second] and page["has_more"]
    rest = (await stand.post(None, f"/files?limit=2&after={second}&order=desc", method="GET")).json
    assert [its["id"] for its in rest["data"]] == [first] and not rest["has_more"]
    assert (await stand.post(None, f"/files/{first}", method="GET")).json["bytes"] == 9
    content = await stand.post(None, f"/files/{first}/content", method="GET")
    assert content.body == b"content 0" and content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert (await stand.post(None, f"/files/{first}", method="DELETE")).json["deleted"] is True
    assert (await stand.post(None, f"/files/{first}", method="GET")).status == 404
    for query in ("limit=0", "limit=x", "order=up", "x=1"):
        assert (await stand.post(None, f"/files?{query}", method="GET")).status == 400


async def test_files_of_anthropic(stand: Stand) -> None:
    """The same paths; the header of its clients tells them apart."""
    version = {"anthropic-version": "2023-06-01", "anthropic-beta": "files-api-2025-04-14"}
    form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\ndata\r\n--x--\r\n'
    sent = version | {"content-type": "multipart/form-data; boundary=x"}
    made = await stand.post(form, "/files", headers=sent)
    assert made.status == 200 and made.json["type"] == "file", made.body
    id_ = made.json["id"]
    assert (await stand.post(None, f"/files/{id_}", method="GET")).status == 404, "not at the other provider"
    listed = await stand.post(None, "/files", method="GET", headers=version)
    assert [its["id"] for its in listed.json["data"]] == [id_] and "object" not in listed.json
    document = [{"type": "document", "source": {"type": "file", "file_id": id_}}]
    reply = await stand.post(message(messages=[{"role": "user", "content": document}]), "/messages")
    assert reply.status == 200, reply.body


async def test_objects_at_several_providers(stand: Stand) -> None:
    """What is kept at one is not sent to another."""
    file = await upload(stand)
    document = [{"type": "document", "source": {"type": "file", "file_id": file}}]
    reply = await stand.post(message(messages=[{"role": "user", "content": document}]), "/messages")
    assert reply.status == 400 and reply.json["error"]["message"].startswith("The request refers to"), reply.body


async def test_it_is_admitted_and_free(stand: Stand) -> None:
    """One of the requests that a limit counts; no token, no money, and no price is needed."""
    stand.key(Policy(budgets=(Budget(10**9),), windows=(Window(Unit.REQUESTS, 2), Window(Unit.TOKENS, 1000))))
    made = await respond(stand, max_output_tokens=20)
    before = len(stand.governor.granted)
    assert (await stand.post(None, f"/responses/{made['id']}", method="GET")).status == 200
    assert len(stand.governor.granted) == before + 1
    demand = stand.governor.granted[-1].demand
    assert (demand.tokens, demand.hold_nano) == (0, 0) and stand.governor.ends[-1].cost_nano == 0
    assert stand.records.all[-1].endpoint == "/v1/responses/{id}" and stand.records.all[-1].model == "gpt-4o-mini"
    assert (await stand.post(None, f"/responses/{made['id']}", method="GET")).status == 429


async def test_the_database_is_away(stand: Stand) -> None:
    """Answers go on, are found by this process, and are written when it is back; what it does not know is a 503."""
    stand.objects.away = True
    made = await respond(stand)
    assert (await stand.post(None, f"/responses/{made['id']}", method="GET")).status == 200
    unknown = await stand.post(None, "/responses/resp_other", method="GET")
    assert unknown.status == 503 and b"looked up" in unknown.body
    assert stand.count("tollkeeper_objects_late_total") == 1
    stand.objects.away = False
    await respond(stand)
    assert (owner_of(stand), made["id"]) in stand.objects.all
    assert stand.objects.all[owner_of(stand), made["id"]].kind is ObjectKind.RESPONSE


@pytest.mark.parametrize(
    "path",
    [
        "/responses/..%2f..%2fadmin",
        "/responses/a%2fb",
        "/responses/a%3fx=1",
        "/responses/" + "a" * 200,
        "/files/a%00b",
        "/files/a%0d%0aX:%20y/content",
    ],
)
async def test_paths_that_are_none(stand: Stand, path: str) -> None:
    """An id is letters, digits, - and _: nothing in it reaches the provider's path."""
    reply = await stand.post(None, path, method="GET")
    assert reply.status in (404, 400), reply.body
    assert stand.simulator.served.last == 0


async def test_queries_that_are_not_passed_on(stand: Stand) -> None:
    made = await respond(stand)
    for query in (
        "x=1",
        "include[]=a&api-version=1",
        "limit=" + "1" * 300,
        "&".join(f"include=a{n}" for n in range(40)),
    ):
        reply = await stand.post(None, f"/responses/{made['id']}/input_items?{query}", method="GET")
        assert reply.status == 400, (query, reply.body)


async def test_wrong_methods(stand: Stand) -> None:
    reply = await stand.post({}, "/responses/resp_1", method="PUT")
    assert reply.status == 405 and reply.headers["allow"] == "GET, DELETE"


async def test_only_configured_providers_can_be_named(stand: Stand) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\ndata\r\n--x--\r\n'
    for name in ("http://evil.example", "sim-anthropic", "none"):
        sent = {"content-type": "multipart/form-data; boundary=x", "x-tollkeeper-provider": name}
        reply = await stand.post(form, "/files", headers=sent)
        assert reply.status == 400 and "known: sim, sim-azure." in reply.json["error"]["message"]
