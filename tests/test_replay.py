"""A real trace through two gateways on Redis, PostgreSQL and S3, held against what the provider says it served.

Promises 4, 5 and 7: to the nano-dollar, the token and the record, with prices calculated by another library.
"""

import asyncio
import csv
from collections import defaultdict
from collections.abc import Iterator
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import aiohttp
import genai_prices
import jsonschema
import msgspec
import pytest

from tests.servers.gateway import DIGEST_KEY, GatewayProcess, SimulatorProcess
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisServer, redis_server
from tests.servers.s3 import S3Server, moto_server, s3_server
from tollkeeper.logs import objects
from tollkeeper.logs.query import Interval, query
from tollkeeper.logs.sinks import LogStore, open_store
from tollkeeper.logs.stats import summary
from tollkeeper.logs.verify import verify
from tollkeeper.storage.database import Database

__all__ = ["moto_server", "postgres", "redis_server", "s3_server"]

TRACE = Path(__file__).parent / "data" / "lmsys_arena_vtc_real_trace_27clients.csv"
SCHEMA = msgspec.json.decode((Path(__file__).parent.parent / "docs" / "log-record.schema.json").read_bytes())
SPEEDUP = 60
KINDS = (
    ("/v1/chat/completions", "gpt-4o-mini", False),
    ("/v1/chat/completions", "gpt-4o", True),
    ("/v1/messages", "claude-sonnet-4-5", False),
    ("/v1/messages", "claude-haiku-4-5", True),
    ("/v1/responses", "gpt-4.1-nano", True),
)


class Request(msgspec.Struct):
    number: int
    client: str
    at_s: float
    input_tokens: int
    output_tokens: int


def read_trace() -> list[Request]:
    with TRACE.open() as file:
        return [
            Request(
                int(row["req_id"]), row["client"], float(row["req_time_s"]), int(row["prompt_len"]),
                int(row["output_len"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def body_of(request: Request, path: str, model: str, stream: bool) -> dict[str, object]:
    """A prompt whose bytes can hold the trace's tokens, and a directive that makes the provider count them."""
    cached = request.input_tokens // 3 if request.number % 4 == 0 else 0
    directive = f"[[sim input={request.input_tokens} output={request.output_tokens} cached={cached}]]"
    text = directive + "x" * max(0, request.input_tokens - len(directive))
    limit = max(1, request.output_tokens)
    if path == "/v1/responses":
        return {"model": model, "input": text, "max_output_tokens": limit, "stream": stream, "user": request.client}
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": limit,
        "stream": stream,
    }
    who: dict[str, object] = {"metadata": {"user_id": request.client}} if "messages" in path.split("/") else {}
    return body | (who or {"user": request.client})


@pytest.fixture
def fleet(
    tmp_path: Path, redis_server: RedisServer, postgres: PostgresServer, s3_server: S3Server
) -> Iterator[tuple[list[GatewayProcess], SimulatorProcess, dict[str, str]]]:
    redis_server.command("FLUSHALL")
    environ = {
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": postgres.create_database("replay"),
        "LOG_STORE_URL": s3_server.url("replay"),
        **s3_server.environ,
    }
    simulator = SimulatorProcess(tmp_path)
    migrate(environ)
    patient = "[store]\nadmission_timeout_s = 20\n"  # a busy machine is not what is tried here
    gateways = [GatewayProcess(tmp_path / f"gateway{n}", simulator.url, environ, patient) for n in range(2)]
    yield gateways, simulator, environ
    for program in (*gateways, simulator):
        program.kill()


def migrate(environ: dict[str, str]) -> None:
    async def run() -> None:
        database = await Database.open(environ["DATABASE_URL"])
        await database.migrate()
        await database.close()

    asyncio.run(run())


async def replay(
    gateways: list[GatewayProcess], requests: list[Request], secrets: dict[str, str]
) -> list[tuple[int, str]]:
    """Send every request at its time; returns (status, first bytes of the body) of each."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(request: Request) -> tuple[int, str]:
            path, model, stream = KINDS[request.number % len(KINDS)]
            await asyncio.sleep(begun + request.at_s / SPEEDUP - loop.time())
            gateway = gateways[request.number % len(gateways)]
            secret = secrets[request.client]
            header = {"x-api-key": secret} if path == "/v1/messages" else {"Authorization": f"Bearer {secret}"}
            async with session.post(
                gateway.url + path, json=body_of(request, path, model, stream), headers=header
            ) as response:
                return response.status, (await response.text())[:200]

        return await asyncio.gather(*map(send, requests))


def true_cost_nano(served: dict[str, object]) -> int:
    """The price library's own arithmetic on what the provider counted; one ceiling a request."""
    usage, model = served["usage"], str(served["model"])
    assert isinstance(usage, dict)
    counts = {
        "input_tokens": usage["input_tokens"],
        "cache_read_tokens": usage["cached_tokens"],
        "output_tokens": usage["output_tokens"],
    }
    provider = "anthropic" if model.startswith("claude") else "openai"
    price = genai_prices.calc_price(genai_prices.Usage(**counts), model, provider_id=provider).total_price
    return int((Decimal(price) * 10**9).to_integral_value(ROUND_CEILING))


@pytest.mark.timeout(400)
def test_replay_equals_the_provider(
    fleet: tuple[list[GatewayProcess], SimulatorProcess, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summary, spend and records equal the provider's account, per key, to the nano-dollar and the token."""
    gateways, simulator, environ = fleet
    requests = read_trace()
    keys: dict[str, str] = {}
    secrets: dict[str, str] = {}
    gateways[0].admin("POST", "/organisations", {"name": "arena"})
    gateways[0].admin(
        "POST", "/teams", {"name": "chat", "organisation": "arena", "limits": {"budgets": {"month": "900"}}}
    )
    for client in sorted({request.client for request in requests}):
        team = {"team": "chat"} if int(client) % 2 else {}
        limits = {"rpm": 100_000, "tpm": 100_000_000, "max_parallel": 500, "budgets": {"month": "500"}}
        made = gateways[0].admin("POST", "/keys", {"name": f"client-{client}", "limits": limits, **team})
        keys[str(made["id"])], secrets[client] = client, str(made["secret"])

    answers = asyncio.run(replay(gateways, requests, secrets))
    assert [answer for answer in answers if answer[0] != 200] == []
    assert [gateway.stop() for gateway in gateways] == [0, 0]

    served = msgspec.json.decode(simulator.get("/sim/requests?since=0"))["requests"]
    assert len(served) == len(requests)
    truth: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for each in served:
        usage = each["usage"]
        row = (true_cost_nano(each), 1, usage["input_tokens"], usage["output_tokens"], usage["cached_tokens"])
        truth[each["user"]] = [a + b for a, b in zip(truth[each["user"]], row, strict=True)]

    for name, value in environ.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    asyncio.run(compare(environ, keys, truth, {each["request_id"]: each for each in served}))


async def compare(
    environ: dict[str, str], keys: dict[str, str], truth: dict[str, list[int]], served: dict[str, dict[str, object]]
) -> None:
    database = await Database.open(environ["DATABASE_URL"])
    summary: dict[str, list[int]] = {}
    for row in await database.spend.monthly_usage():
        numbers = [row.cost_nano, row.requests, row.input_tokens, row.output_tokens, row.cached_tokens]
        client = keys[row.key_id]
        summary[client] = [a + b for a, b in zip(summary.get(client, [0] * 5), numbers, strict=True)]
    assert summary == dict(truth)
    accounts = database.accounts(DIGEST_KEY.encode(), lambda: 0)
    in_team = {key.id for key in await accounts.list_keys() if key.team_id is not None}
    team_cost = sum(truth[client][0] for key, client in keys.items() if key in in_team)
    for root in await database.spend.roots():
        totals = (await database.spend.load(root)).totals
        teams = [total.cost_nano for name, total in totals.items() if name.startswith("team_")]
        if teams:
            assert sum(teams) == team_cost
            assert sum(t.cost_nano for name, t in totals.items() if name[0].isdigit()) == team_cost
    await database.close()

    store = open_store(environ["LOG_STORE_URL"], timeout_s=30)
    report = await verify(store)
    assert report.complete and report.records == len(served), report
    records = {}
    async for path in store.list():
        for line in (objects.records_in(await store.read(path)) or b"").splitlines():
            record = msgspec.json.decode(line)
            records[record["request_id"]] = record
    assert records.keys() == served.keys()
    await compare_query(store, keys, truth)
    for request_id, record in records.items():
        jsonschema.validate(record, SCHEMA)
        usage = served[request_id]["usage"]
        assert isinstance(usage, dict)
        assert record["tokens_input"] == usage["input_tokens"] and record["tokens_output"] == usage["output_tokens"]
        assert record["cost_nano"] == true_cost_nano(served[request_id]) and not record["presumed"]


async def compare_query(store: LogStore, keys: dict[str, str], truth: dict[str, list[int]]) -> None:
    """SQL over the bucket gives the provider's account, key by key."""
    found = await query(
        store,
        "SELECT key_id, sum(cost_nano), count(*), sum(tokens_input), sum(tokens_output), sum(tokens_cached) "
        "FROM logs GROUP BY key_id",
    )
    account: dict[str, list[int]] = {}
    for key_id, *numbers in found.rows:
        client = keys[key_id]
        account[client] = [a + int(b) for a, b in zip(account.get(client, [0] * 5), numbers, strict=True)]
    assert account == dict(truth)
    total = (await summary(store, Interval())).total
    assert [total["requests"], total["tokens_input"]] == [sum(row[n] for row in truth.values()) for n in (1, 2)]
