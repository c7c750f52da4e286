"""The ASGI middleware and the FastAPI dependency, in applications under uvicorn, asked by a real HTTP client."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request

from tests.governance.runner import PlainRunner
from tests.servers.redis import RedisServer
from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.domain.limits import LimitResult
from tollkeeper.governance.asgi_limits import RateLimitMiddleware, client_address
from tollkeeper.governance.fastapi_limits import rate_limit
from tollkeeper.governance.limit_rules import LimitRule
from tollkeeper.governance.limit_stores import MemoryLimits
from tollkeeper.governance.limiters import SlidingWindowLimiter, TokenBucketLimiter

prefixes = itertools.count()


@pytest.fixture
async def limiter(redis_server: RedisServer) -> AsyncIterator[SlidingWindowLimiter]:
    runner = PlainRunner(redis_server.url)
    yield SlidingWindowLimiter(runner, prefix=f"http{next(prefixes)}")
    await runner.stop()


@asynccontextmanager
async def serving(app: Any, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """`app` under uvicorn, on a unix socket."""
    path = str(folder / "s")
    server = uvicorn.Server(uvicorn.Config(app, uds=path, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    connector = aiohttp.UnixConnector(path)
    async with aiohttp.ClientSession("http://test", connector=connector) as client:
        yield client
    server.should_exit = True
    await task


def fastapi_app(limiter: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    by_user = rate_limit(limiter, 2, key=lambda request: request.headers.get("user"), name='per "user"', **options)

    @app.get("/limited")
    async def limited(result: Annotated[LimitResult | None, Depends(by_user)]) -> dict[str, Any]:
        return {"remaining": result and result.remaining}

    @app.get("/free")
    async def free() -> str:
        return "free"

    return app


async def test_fastapi_dependency(limiter: SlidingWindowLimiter, tmp_path: Path) -> None:
    """A few lines for the user: headers on what is allowed, 429 with retry-after on what is not, each id its own."""
    async with serving(fastapi_app(limiter), tmp_path) as client:
        for remaining in (1, 0):
            answer = await client.get("/limited", headers={"user": "anna"})
            assert answer.status == 200 and await answer.json() == {"remaining": remaining}
            assert answer.headers["x-ratelimit-limit"] == "2"
            assert answer.headers["x-ratelimit-remaining"] == str(remaining)
            assert answer.headers["x-ratelimit-reset"] in ("60", "61")
            assert answer.headers["ratelimit-policy"] == '"per \\"user\\"";q=2;w=60'
            assert answer.headers["ratelimit"].startswith(f'"per \\"user\\"";r={remaining};t=6')
            assert "retry-after" not in answer.headers
        answer = await client.get("/limited", headers={"user": "anna"})
        assert answer.status == 429 and answer.headers["retry-after"] in ("60", "61")
        assert answer.headers["x-ratelimit-remaining"] == "0"
        detail = (await answer.json())["detail"]
        assert detail["code"] == "rate_limit_exceeded" and 59 < detail["retry_after"] <= 60.01
        assert (await client.get("/limited", headers={"user": "bert"})).status == 200
        answer = await client.get("/limited")
        assert await answer.json() == {"remaining": None} and "x-ratelimit-limit" not in answer.headers
        assert (await client.get("/free")).status == 200


async def test_dependency_openapi_stays_clean(limiter: SlidingWindowLimiter) -> None:
    """The dependency adds no parameters of its own to a user's API."""
    paths = fastapi_app(limiter).openapi()["paths"]
    assert "parameters" not in paths["/limited"]["get"]


async def test_middleware_in_fastapi(limiter: SlidingWindowLimiter, tmp_path: Path) -> None:
    """One line for the user; the refusal is the middleware's own JSON; what has no id is not limited."""
    app = FastAPI()

    @app.get("/")
    async def root() -> str:
        return "here"

    def key(scope: Any) -> str | None:
        return None if scope["path"] == "/health" else client_address(scope)

    app.add_middleware(RateLimitMiddleware, limiter=limiter, limit=3, key=key)
    async with serving(app, tmp_path) as client:
        answers = [await client.get("/") for _ in range(4)]
        assert [a.status for a in answers] == [200, 200, 200, 429]
        assert [a.headers["x-ratelimit-remaining"] for a in answers] == ["2", "1", "0", "0"]
        error = (await answers[3].json())["error"]
        assert error["code"] == "rate_limit_exceeded" and answers[3].content_type == "application/json"
        assert int(answers[3].headers["retry-after"]) >= error["retry_after"] > 59
        unlimited = await client.get("/health")
        assert unlimited.status == 404 and "x-ratelimit-limit" not in unlimited.headers


async def test_bucket_and_weights(redis_server: RedisServer, tmp_path: Path) -> None:
    """A bucket with a burst; a cost from the request; one above the burst is a 400 that is not worth a retry."""
    runner = PlainRunner(redis_server.url)
    bucket = TokenBucketLimiter(runner, prefix=f"http{next(prefixes)}")

    def cost(request: Request) -> int:
        return int(request.query_params["cost"])

    app = FastAPI(dependencies=[Depends(rate_limit(bucket, 60, burst=5, cost=cost))])

    @app.get("/")
    async def root() -> str:
        return "here"

    async with serving(app, tmp_path) as client:
        answer = await client.get("/?cost=4")
        assert answer.status == 200 and answer.headers["ratelimit-policy"] == '"default";q=5;w=5'
        assert answer.headers["ratelimit"] == '"default";r=1;t=4'
        answer = await client.get("/?cost=4")
        assert answer.status == 429 and answer.headers["retry-after"] == "3"
        answer = await client.get("/?cost=6")
        assert answer.status == 400 and answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert (await answer.json())["detail"]["code"] == "request_exceeds_limit"
    await runner.stop()


async def test_inner_limits_speak_first(tmp_path: Path) -> None:
    """Nested limiters: the headers of the innermost stay."""
    store = MemoryLimits()
    inner = RateLimitMiddleware(fastapi_app(SlidingWindowLimiter(store)), SlidingWindowLimiter(store), 5)
    outer = RateLimitMiddleware(inner, SlidingWindowLimiter(store, prefix="outer"), 9)
    async with serving(outer, tmp_path) as client:
        assert (await client.get("/free")).headers.getall("x-ratelimit-limit") == ["5"]
        answer = await client.get("/limited", headers={"user": "x"})
        assert answer.headers.getall("x-ratelimit-limit") == ["2"]


async def test_websockets_are_limited() -> None:
    """Refused in the handshake: with the same answer where the server can send one, else by closing."""
    sent: list[Any] = []
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    limited = RateLimitMiddleware(app, SlidingWindowLimiter(MemoryLimits()), 1)
    scope = {"type": "websocket", "client": None, "path": "/"}
    await limited(scope, receive, send)
    assert (b"x-ratelimit-remaining", b"0") in sent.pop()["headers"] and reached == ["websocket"]
    await limited(scope, receive, send)
    closed = sent.pop()
    assert closed["type"] == "websocket.close" and closed["code"] == 1013 and reached == ["websocket"]
    await limited({**scope, "extensions": {"websocket.http.response": {}}}, receive, send)
    assert [m["type"] for m in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 429 and b"rate_limit_exceeded" in sent[1]["body"]
    await limited({"type": "lifespan"}, receive, send)
    assert reached == ["websocket", "lifespan"]


def user_of(scope: Any) -> str:
    name: bytes = dict(scope["headers"])[b"user"]
    return name.decode()


class Leaving:
    """A client whose Redis goes away and comes back."""

    def __init__(self, runner: PlainRunner) -> None:
        self.runner, self.away = runner, False

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Any], **_: Any) -> Any:
        if self.away:
            raise StoreUnavailable("away", sent=False)
        return await self.runner.run(script, keys, args)


@pytest.mark.parametrize(
    ("when_away", "expected"),
    [
        ("bounded", [200, 200, 429, 200, 429]),
        ("open", [200, 200, 200, 200, 200]),
        ("closed", [200, 503, 503, 503, 503]),
    ],
)
@pytest.mark.parametrize("wrap", ["middleware", "dependency"])
async def test_redis_away(
    redis_server: RedisServer, tmp_path: Path, when_away: Any, expected: list[int], wrap: str
) -> None:
    """*bounded* goes on with what this process has allowed: a limit just filled is not filled again."""
    leaving = Leaving(PlainRunner(redis_server.url))
    limiter = SlidingWindowLimiter(leaving, prefix=f"http{next(prefixes)}")
    app: Any = fastapi_app(limiter, when_away=when_away)
    path = "/limited"
    if wrap == "middleware":
        app, path = RateLimitMiddleware(app, limiter, 2, key=user_of, when_away=when_away), "/free"
    async with serving(app, tmp_path) as client:
        statuses = []
        for number, user in enumerate(["a", "a", "a", "b", "a"]):
            leaving.away = number > 0
            answer = await client.get(path, headers={"user": user})
            statuses.append(answer.status)
            if answer.status == 503:
                assert answer.headers["retry-after"] == "1"
                content = await answer.json()
                assert (content.get("error") or content["detail"])["code"] == "rate_limiter_unavailable"
        assert statuses == expected
    await leaving.runner.stop()


def test_rules_that_cannot_be_are_refused() -> None:
    """At start, not at the first request."""
    window, bucket = SlidingWindowLimiter(MemoryLimits()), TokenBucketLimiter(MemoryLimits())
    wrongs: list[Callable[[], LimitRule]] = [
        lambda: LimitRule(window, 0),
        lambda: LimitRule(window, 5, burst=5),
        lambda: LimitRule(bucket, 5, burst=0),
        lambda: LimitRule(window, 5, when_away="never"),  # type: ignore[arg-type]
        lambda: LimitRule(window, 5, name="a\r\nb"),
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidInput):
            wrong()
    assert client_address({"client": ("192.0.2.1", 7)}) == "192.0.2.1" and client_address({}) == "-"
