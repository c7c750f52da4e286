"""The data plane under the HTTP server, in front of the simulator, with the ledger on the memory store: all real."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop

from tests.gateway.fakes import (
    DIGEST_KEY,
    End,
    MemoryDirectory,
    MemoryObjects,
    NothingDurable,
    Records,
    WatchedGovernor,
    principal_of,
)
from tollkeeper.app.connection import Connection, Shared
from tollkeeper.domain.policy import UNLIMITED, Policy
from tollkeeper.domain.record import RequestRecord
from tollkeeper.gateway.server import DataPlane
from tollkeeper.governance import Ledger, MemoryStore
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import (
    ImagePriceSettings,
    ModelSettings,
    ProviderSettings,
    RoutingSettings,
    ServerSettings,
    Settings,
)
from tollkeeper.simulator import Simulator

PROVIDER_KEY = "sk-provider-secret"
MODEL = "gpt-4o-mini"


ON_BOTH_LOOPS = ("test_http1.py", "test_upstream.py")
"""What depends on the event loop's transports is tested on asyncio's and on the one that serves."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Called by pytest-asyncio for each test of this folder."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def now_us() -> int:
    return time.time_ns() // 1000


class Reply(msgspec.Struct):
    """A response, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Stand:
    """Everything a test of the data plane touches."""

    def __init__(self, tmp_path: Path, settings: Settings, simulator: Simulator) -> None:
        self.directory = MemoryDirectory()
        self.metrics = Metrics()
        self.records = Records()
        self.objects = MemoryObjects()
        self.simulator = simulator
        self.settings = settings
        self._ledger = Ledger(
            store=MemoryStore(now_us),
            spend=NothingDurable(),
            outbox_dir=tmp_path / "outbox",
            metrics=Metrics(),
            now_us=now_us,
        )
        self.governor = WatchedGovernor(self._ledger)
        self.plane = DataPlane(
            settings=settings,
            provider_keys=dict.fromkeys(settings.providers, PROVIDER_KEY),
            digest_key=DIGEST_KEY,
            directory=self.directory,
            governor=self.governor,
            records=self.records,
            metrics=self.metrics,
            now_us=now_us,
            objects=self.objects,
            corrector=self._ledger,
        )
        self.url = self.secret = ""
        self.keys = 0
        self.port = 0
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Stand"]:
        await self._ledger.start()
        await self.plane.start()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**15)  # so that slow clients are felt early
            listener.listen()
            self.port = listener.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}/v1"
            shared = Shared(self.plane, connections_max=100)
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: Connection(shared), sock=listener)
            async with aiohttp.ClientSession() as self._session:
                yield self
            server.close()
            for connection in tuple(shared.connections):
                connection.close()
        await self.plane.stop()
        await self._ledger.stop()

    def key(self, policy: Policy = UNLIMITED) -> None:
        """From now on the test's requests come with a new key of this policy."""
        self.keys += 1
        self.secret = f"tk_{self.keys:043d}"
        self.principal = self.directory.put(self.secret, principal_of(f"test{self.keys}", policy))

    async def post(
        self,
        body: Any,
        path: str = "/chat/completions",
        *,
        method: str = "POST",
        secret: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """`secret` None sends no key; by default it is the current one."""
        assert self._session is not None
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        sent = {} if secret is None else {"authorization": f"Bearer {secret or self.secret}"}
        async with self._session.request(method, self.url + path, data=data, headers=sent | (headers or {})) as got:
            names = {name.lower(): value for name, value in got.headers.items()}
            return Reply(got.status, names, await got.read())

    async def settled(self) -> None:
        """Wait until no request is in flight."""
        async with asyncio.timeout(10):
            while self.plane.health()["active_requests"]:
                await asyncio.sleep(0.005)

    async def one_end(self) -> tuple[End, RequestRecord]:
        """The single end and the single record of the single admitted request, which agree."""
        await self.settled()
        assert len(self.governor.granted) == len(self.governor.ends) == len(self.records.all) == 1
        end, record = self.governor.ends[0], self.records.all[0]
        assert (record.cost_nano, record.presumed) == (end.cost_nano, end.kind == "presumed")
        assert (record.tokens_input, record.tokens_output) == (end.usage.input_tokens, end.usage.output_tokens)
        return end, record

    def count(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.metrics.exposition().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def chat(text: str = "hello", *, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """A chat request whose text may carry a directive for the simulator."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def message(text: str = "hello", *, model: str = "claude-haiku-4-5", **fields: Any) -> dict[str, Any]:
    """The same for Anthropic's dialect."""
    return {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulated = Simulator(api_keys=[PROVIDER_KEY])
    await simulated.start()
    yield simulated
    await simulated.stop()


def settings_for(base_url: str) -> Settings:
    """Two providers at one address, with deadlines short enough to wait for."""
    deadlines: dict[str, float] = {
        "connect_timeout_s": 0.2,
        "first_byte_timeout_s": 0.4,
        "idle_timeout_s": 0.3,
        "total_timeout_s": 5.0,
    }
    return Settings(
        routing=RoutingSettings(attempts_max=1),
        server=ServerSettings(body_bytes_max=200_000, body_timeout_s=0.5, drain_timeout_s=1.0),
        providers={
            "sim": ProviderSettings(
                base_url=base_url,
                dialect="openai",
                prices="openai",
                models=("gpt-*", "text-*", "o4-*", "local-*", "whisper-*", "tts-*", "dall-e-*", "omni-*", "rerank-*"),
                **deadlines,  # type: ignore[arg-type]
            ),
            "sim-azure": ProviderSettings(
                base_url=f"{base_url.removesuffix('/v1')}/openai",
                dialect="openai",
                azure_api_version="2025-04-01-preview",
                models=("azure-*",),
                **deadlines,  # type: ignore[arg-type]
            ),
            "sim-anthropic": ProviderSettings(
                base_url=base_url,
                dialect="anthropic",
                prices="anthropic",
                models=("claude-*",),
                **deadlines,  # type: ignore[arg-type]
            ),
        },
        models={
            "house-model": ModelSettings(provider="sim", upstream_model="gpt-4o-mini", max_output_tokens=1000),
            "fee-model": ModelSettings(provider="sim", input_usd="1", output_usd="1", per_request_usd="0.5"),
            "dall-e-3": ModelSettings(per_image_usd="0.04"),
            "house-gpt-image": ModelSettings(
                provider="sim",
                image_prices=(
                    ImagePriceSettings(size="1024x1024", quality="medium", usd="0.03"),
                    ImagePriceSettings(usd="0.09"),
                ),
            ),
            "gpt-sized": ModelSettings(
                image_prices=(
                    ImagePriceSettings(size="1024x1024", quality="low", usd="0.01"),
                    ImagePriceSettings(size="1024x1024", usd="0.05"),
                    ImagePriceSettings(quality="low", usd="0.02"),
                )
            ),
            "rerank-v3.5": ModelSettings(per_search_usd="0.002"),
            "whisper-long": ModelSettings(per_audio_hour_usd="0.36", audio_seconds_max=600),
        },
    )


def patient(settings: Settings) -> Settings:
    """The same with deadlines that no test meets."""
    waits = dict.fromkeys(("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s", "total_timeout_s"), 60.0)
    providers = {name: msgspec.structs.replace(its, **waits) for name, its in settings.providers.items()}
    server = msgspec.structs.replace(settings.server, body_timeout_s=60.0)
    return msgspec.structs.replace(settings, providers=providers, server=server)


@pytest.fixture
async def stand(request: pytest.FixtureRequest, tmp_path: Path, simulator: Simulator) -> AsyncIterator[Stand]:
    """The data plane with one key, unlimited at first. A test marked `hasty` waits for a deadline; no other may meet
    one on a busy machine."""
    settings = settings_for(simulator.base_url)
    hasty = request.node.get_closest_marker("hasty") is not None
    made = Stand(tmp_path, settings if hasty else patient(settings), simulator)
    made.key()
    async with made.running():
        yield made
