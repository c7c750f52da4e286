"""Gateways on one Redis and one PostgreSQL, with clients, and with a judge who only believes the provider.

The simulated provider's journal is the truth: what it served, for whom and how many tokens. The judge holds the
database to it, key by key, to the nano-dollar and the token. Where a charge is presumed it must be listed, must
belong to one attempt, and must not be below the truth.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import genai_prices
import msgspec

from tests.campaigns.victim import CLOCK_BYTES, Decision
from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.test_replay import migrate
from tollkeeper.domain.errors import Unavailable
from tollkeeper.domain.ports import ListedCharge
from tollkeeper.simulator.account import ServedRequest
from tollkeeper.storage.database import Database

ROOT_FOLDER: Final = Path(__file__).parents[2]
MODEL: Final = "gpt-4o-mini"
SETTINGS: Final = """
[store]
read_timeout_s = {patience_s}
admission_timeout_s = {patience_s}
[outage]
budgets = "closed"
[billing]
recovery_grace_s = {grace_s}
[database]
timeout_s = {database_s}
[routing]
"""
"""Deadlines are not the subject: what is slow on a busy machine must not count as away."""
NO_RETRIES: Final = "attempts_max = 1"
RETRIES: Final = """attempts_max = 3
attempts_per_model_max = 3
retry_ratio = 1.0
retry_burst = 100000
backoff_min_s = 0.01
backoff_max_s = 0.1
cooldown_failures = 1000000
cooldown_requests_min = 1000000
"""
"""Nothing but the number of attempts keeps a request from being tried again."""
GRACE_S: Final = 60
"""A budget may wait so long for a producer that does not come back."""
ANSWER_S: Final = 40.0
RECOVERY_S: Final = 2.5 * GRACE_S
"""Until everything agrees again; more is reported as a difference. Longer than what the product itself may wait."""
SHOWN: Final = 5
PROMPT_BYTES: Final = 250
FIELDS: Final = ("cost_nano", "requests", "input_tokens", "output_tokens", "cached_tokens")


@contextmanager
def servers() -> Iterator[tuple[Path, RedisServer, PostgresServer]]:
    """A folder, a Redis with an append-only file and a PostgreSQL, for a campaign to break."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tk-")))
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis", aof=True)
        stack.callback(redis.stop)
        redis.start()
        postgres = PostgresServer()
        stack.callback(postgres.stop)
        yield folder, redis, postgres


class Ask(NamedTuple):
    """One request. All bodies of a key are equally long, so that equal output limits give equal bounds."""

    key: str
    input_tokens: int
    output_tokens: int
    max_tokens: int
    stream: bool = False
    delay_ms: int = 0
    fault: str = ""
    hang_up: bool = False
    status: int = 0
    """Of the provider's answer, if it is an error."""
    nonce: str = ""
    """Makes the body another than all others; then only the first attempt meets `fault` or `status`."""

    def body(self) -> dict[str, Any]:
        fault = f" fault={self.fault}" if self.fault else ""
        fault += f" status={self.status}" if self.status else ""
        fault += " times=1" if self.nonce else ""
        chunks = f" chunk_delay_ms={self.delay_ms // 8}" if self.stream else ""
        directive = (
            f"[[sim input={self.input_tokens} output={self.output_tokens} delay_ms={self.delay_ms}{chunks}{fault}]]"
            f" {self.nonce}"
        )
        text = directive.ljust(PROMPT_BYTES - len(str(self.max_tokens)), "x")
        return {
            "model": MODEL,
            "max_tokens": self.max_tokens,
            "stream": self.stream,
            "user": self.key,
            "messages": [{"role": "user", "content": text}],
        }


@cache
def cost_nano(input_tokens: int, output_tokens: int, cached_tokens: int) -> int:
    """The price library's own arithmetic, one ceiling a request."""
    usage = genai_prices.Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached_tokens
    )
    price = genai_prices.calc_price(usage, MODEL, provider_id="openai").total_price
    return int(-(-price * 10**9 // 1))


class Account(NamedTuple):
    """Of one key, from one side."""

    cost_nano: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def plus(self, other: "Account") -> "Account":
        return Account(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING: Final = Account()


class Judgement(NamedTuple):
    """Differences in words, none if all is well; and what was compared."""

    differences: tuple[str, ...]
    served: int = 0
    """Since the last judgement; so are the others."""
    presumed: int = 0
    late: int = 0


class Lines:
    """A file of lines that others append to, read on from where it was left."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_to = path, 0

    def new(self) -> list[bytes]:
        """The whole lines that came since."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_to += len(whole)
        return whole.splitlines()


class Fleet:
    """`gateways` victims. Whoever uses it calls `start` and `close`; servers are the caller's."""

    def __init__(
        self,
        folder: Path,
        redis: RedisServer,
        postgres: PostgresServer,
        *,
        gateways: int = 4,
        sync: str = "200ms",
        environ: Mapping[str, str] | None = None,
        patience_s: float = 5.0,
        database_s: float = 10.0,
        retries: bool = False,
        shift_us: int = 0,
    ) -> None:
        self.folder, self.redis, self.postgres = folder, redis, postgres
        self.count, self.sync, self.patience_s, self.database_s = gateways, sync, patience_s, database_s
        self.retries, self.shift_us = retries, 0
        self.environ = dict(environ or {})
        if shift_us:
            self.environ["VICTIM_CLOCK"] = str(folder / "clock")
            self.advance(shift_us)
        self.environ_of: dict[int, dict[str, str]] = {}
        """More of it for single gateways."""
        self.journal, self.tap = folder / "journal", folder / "tap"
        self.database_url = postgres.create_database(f"fleet_{time.time_ns()}")
        self.gateways: list[GatewayProcess] = []
        self.secrets: dict[str, str] = {}
        self.key_ids: dict[str, str] = {}
        self.budgets: dict[str, int] = {}
        """Of keys whose budget must never be passed."""
        self.statuses: Counter[int] = Counter()
        self._judged = (0, 0, 0)
        self._journalled, self._tapped = Lines(self.journal), Lines(self.tap)
        self._served: list[ServedRequest] = []
        self._decisions: list[Decision] = []

    async def start(self) -> None:
        """All on an empty Redis and an empty database, behind a proxy each."""
        self.redis.kill()
        self.redis.forget()  # or a truncated file would bring back what another fleet did
        await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(migrate, {"DATABASE_URL": self.database_url})
        self.redis_proxy = await Proxy(self.redis.socket).__aenter__()
        self.database_proxy = await Proxy(self.postgres.folder / ".s.PGSQL.5432").__aenter__()
        name = self.database_url.partition("?")[0].rpartition("/")[2]
        environ = {
            "PYTHONPATH": str(ROOT_FOLDER),
            "REDIS_URL": self.redis_proxy.url,
            "DATABASE_URL": f"postgresql://tollkeeper@127.0.0.1:{self.database_proxy.port}/{name}",
            "BILLING_SYNC_INTERVAL": self.sync,
            "TOLLKEEPER_LOG_LEVEL": "warning",
            **self.environ,
        }
        deadlines = {"patience_s": self.patience_s, "database_s": self.database_s, "grace_s": GRACE_S}
        settings = SETTINGS.format(**deadlines) + (RETRIES if self.retries else NO_RETRIES)
        self.simulator = await asyncio.to_thread(SimulatorProcess, self.folder, "--journal", str(self.journal))
        self.gateways = [
            GatewayProcess(
                self.folder / f"g{n}",
                self.simulator.url,
                environ | self.environ_of.get(n, {}),
                settings,
                module="tests.campaigns.victim",
                wait=False,
            )
            for n in range(self.count)
        ]
        for gateway in self.gateways:
            await asyncio.to_thread(gateway.wait_until_ready)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=ANSWER_S)
        )

    async def close(self) -> None:
        for program in (*self.gateways, self.simulator):
            program.kill()
        await self.session.close()
        await self.redis_proxy.__aexit__()
        await self.database_proxy.__aexit__()

    # Accounts

    async def admin(self, method: str, path: str, body: object = None, gateway: int = 0) -> dict[str, Any]:
        return await asyncio.to_thread(self.gateways[gateway].admin, method, path, body)

    async def make_tree(
        self, name: str, *, organisation: int | None = None, team: int | None = None, key: int | None = None
    ) -> None:
        """A key in a team of an organisation, with a month's budget each, or none (nano-dollars)."""

        def limits(budget: int | None) -> dict[str, Any]:
            return {} if budget is None else {"limits": {"budgets": {"month": f"{budget / 1e9:.9f}"}}}

        await self.admin("POST", "/organisations", {"name": f"org-{name}", **limits(organisation)})
        await self.admin("POST", "/teams", {"name": f"t-{name}", "organisation": f"org-{name}", **limits(team)})
        made = await self.admin("POST", "/keys", {"name": name, "team": f"t-{name}", **limits(key)})
        self.secrets[name], self.key_ids[str(made["id"])] = str(made["secret"]), name
        budgets = [budget for budget in (organisation, team, key) if budget is not None]
        if budgets:
            self.budgets[name] = min(budgets)

    async def months(self) -> dict[str, dict[int, int]]:
        """What the database says each key spent in each month, by the month's number."""
        database = await Database.open(self.database_url)
        rows = await database.spend.monthly_usage()
        await database.close()
        spent: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for row in rows:
            spent[self.key_ids[row.key_id]][row.month] += row.cost_nano
        return spent

    def advance(self, by_us: int) -> None:
        """Move the gateways' clocks, if they were moved from the beginning."""
        self.shift_us += by_us
        clock = os.open(self.folder / "clock", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(clock, self.shift_us.to_bytes(CLOCK_BYTES, sys.byteorder, signed=True))
        os.close(clock)

    def now(self) -> datetime:
        """By the gateways' clocks."""
        return datetime.fromtimestamp(time.time() + self.shift_us / 1e6, UTC)

    async def sync_all(self) -> None:
        """Each gateway writes to the database what it knows to have changed."""
        for number in range(self.count):
            await self.admin("POST", "/sync", gateway=number)

    # Clients

    async def ask(self, ask: Ask, gateway: int) -> tuple[int, str]:
        """One request; (status, body). Status 0: the connection failed or we hung up."""
        url = self.gateways[gateway].url + "/v1/chat/completions"
        headers = {"Authorization": f"Bearer {self.secrets[ask.key]}"}
        status, text = 0, ""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self.session.post(url, json=ask.body(), headers=headers) as response:
                if ask.hang_up:
                    await response.content.readany()
                    response.close()
                else:
                    text = await response.text()
                status = response.status
        self.statuses[status] += 1
        return status, text

    async def load(
        self, rng: random.Random, until: asyncio.Event, clients: int, keys: Sequence[str] | None = None
    ) -> int:
        """Clients that ask random things of random gateways until told to end, for these keys or for all; returns the
        number of requests."""

        async def client(own: random.Random) -> int:
            asked = 0
            while not until.is_set():
                status, _ = await self.ask(
                    some_ask(own, keys or sorted(self.secrets), retries=self.retries), own.randrange(self.count)
                )
                asked += 1
                if status != 200:
                    await asyncio.sleep(0.02)
            return asked

        return sum(await asyncio.gather(*(client(random.Random(rng.random())) for _ in range(clients))))

    # The judge

    def served(self) -> list[ServedRequest]:
        """All that the provider has written down."""
        self._served += [msgspec.json.decode(line, type=ServedRequest) for line in self._journalled.new()]
        return self._served

    def decisions(self) -> list[Decision]:
        """What the store decided, as the gateways heard it; with `VICTIM_TAP` only."""
        self._decisions += [msgspec.json.decode(line, type=Decision) for line in self._tapped.new()]
        return self._decisions

    async def judge(self, patience_s: float = RECOVERY_S) -> Judgement:
        """Wait until nothing is under way, and compare. What differs may be late, so it is looked at again until
        `patience_s` have passed."""
        deadline = time.monotonic() + patience_s
        while True:
            found = await self._settled()
            if not found.differences or time.monotonic() > deadline:
                counts = (found.served, found.presumed, found.late)
                since = [now - before for now, before in zip(counts, self._judged, strict=True)]
                self._judged = counts
                return Judgement(found.differences, *since)
            await asyncio.sleep(0.2)

    async def _settled(self) -> Judgement:
        for number, gateway in enumerate(self.gateways):
            if gateway.process.poll() is not None:
                return Judgement((f"gateway {number} is dead: {gateway.log.read_text()[-1500:]}",))
        try:
            for number in range(self.count):
                if busy := await asyncio.to_thread(self._busy, number):
                    return Judgement((f"gateway {number} is not at rest: {busy}",))
            await self.sync_all()
            live = await self._live()
            return await self._compare(live)
        except (OSError, AssertionError, Unavailable) as error:
            return Judgement((f"gateways could not be asked: {error!r}",))

    async def _live(self) -> dict[str, set[tuple[int, int]]]:
        """What the store says of the month's budgets of each key that has one, through a gateway: (spent, held) of
        each scope. A tree that nobody has asked for since Redis lost something is loaded by this."""
        live: dict[str, set[tuple[int, int]]] = {}
        for number, (key_id, name) in enumerate(self.key_ids.items()):
            if name in self.budgets:
                answer = await self.admin("GET", f"/limits/{key_id}", gateway=number % self.count)
                months = [state for state in answer["limits"] if state["period"] == "month"]
                live[name] = {(nano_of(state["used"]), nano_of(state["held"])) for state in months}
        return live

    def _busy(self, number: int) -> list[str]:
        """What a gateway still has under way."""
        lines = self.gateways[number].get("/metrics").decode().splitlines()
        names = ("tollkeeper_entries_unacknowledged ", "tollkeeper_holds ")
        return [line for line in lines if line.startswith(names) and float(line.rpartition(" ")[2])]

    async def _compare(self, live: Mapping[str, set[tuple[int, int]]]) -> Judgement:
        database = await Database.open(self.database_url)
        try:
            rows = await database.spend.monthly_usage()
            listed = await database.spend.listed(limit=10**6)
        finally:
            await database.close()
        known: dict[str, Account] = defaultdict(Account)
        months: dict[tuple[str, int], int] = defaultdict(int)
        for row in rows:
            known[row.key_id] = known[row.key_id].plus(Account(*(getattr(row, field) for field in FIELDS)))
            months[row.key_id, row.month] += row.cost_nano
        served = {r.request_id: r for r in self.served() if r.usage is not None}
        truth, presumed, wrong = self._truth(served, listed)
        # What the provider answered and did not bill is a request all the same, unless another attempt followed.
        unbilled = Counter(
            self._id_of(r.user)
            for r in self._served
            if r.usage is None and r.request_id not in presumed and r.status >= 400
        )
        for key in sorted(truth.keys() | known.keys() | unbilled.keys()):
            least = known[key].requests - truth[key].requests if self.retries else unbilled[key]
            mine = truth[key].plus(Account(requests=min(max(0, least), unbilled[key])))
            if mine != known[key]:
                wrong.append(f"{self.key_ids.get(key, key)}: provider {tuple(mine)}, database {tuple(known[key])}")
        for name, budget in self.budgets.items():
            spent = [cost for (key, _), cost in months.items() if key == self._id_of(name)]
            wrong += [f"{name}: spent {cost} of {budget}" for cost in spent if cost > budget]
        wrong += self._holds_left()
        for name, told in live.items():
            expected = months[self._id_of(name), self.now().month]
            if told != {(expected, 0)}:
                wrong.append(f"{name}: database {expected}, store (spent, held) {sorted(told)}")
        late = sum(each.charge.status == "settled" for each in listed)
        return Judgement(tuple(wrong[:SHOWN]), len(served), len(presumed), late)

    def _id_of(self, name: str) -> str:
        return next(key_id for key_id, known in self.key_ids.items() if known == name)

    def _truth(
        self, served: Mapping[str, ServedRequest], listed: Sequence[ListedCharge]
    ) -> tuple[dict[str, Account], set[str], list[str]]:
        """By key what the provider billed, or the presumed charge in its place; the attempts that are presumed; and
        what is wrong by itself. All by attempt."""
        truth: dict[str, Account] = defaultdict(Account)
        presumed: set[str] = set()
        wrong = [
            f"{name}: sent {n} times" for name, n in Counter(r.request_id for r in self._served).items() if n > 1
        ]
        for each in listed:
            if each.charge.status == "presumed":
                presumed.add(each.attempt)
                key = next(r.name.split(":")[0] for r in each.charge.what_is_known().counters if "key" in r.name)
                truth[key] = truth[key].plus(Account(each.charge.cost_nano, 1))
                truth_nano = true_cost(served[each.attempt]) if each.attempt in served else 0
                if each.charge.cost_nano < truth_nano:
                    wrong.append(f"{each.attempt}: presumed {each.charge.cost_nano} below its truth {truth_nano}")
            elif each.charge.status == "quarantined" and each.attempt.lstrip("?") in served:
                wrong.append(f"{each.attempt}: served and in quarantine")
        for attempt, request in served.items():
            if attempt not in presumed:
                assert request.usage is not None
                tokens = (request.usage.input_tokens, request.usage.output_tokens, request.usage.cached_tokens)
                key = self._id_of(request.user)
                truth[key] = truth[key].plus(Account(true_cost(request), 1, *tokens))
        return truth, presumed, wrong

    def holds_of(self, name: str) -> int:
        """How many attempts of a key the store holds."""
        key_id = self._id_of(name)
        values = [value for hold in self.redis.lines("KEYS", "hold:*") for value in self.redis.lines("HVALS", hold)]
        return sum(key_id in value for value in values)

    def _holds_left(self) -> list[str]:
        """Nothing is in flight, so the store holds nothing."""
        left: list[str] = []
        for name in self.redis.lines("KEYS", "hold:*"):
            field, hold, *_ = self.redis.lines("HGETALL", name)
            left.append(f"{name} still holds {field}: {hold}")
        return left


def true_cost(request: ServedRequest) -> int:
    usage = request.usage
    assert usage is not None
    return cost_nano(usage.input_tokens, usage.output_tokens, usage.cached_tokens)


def nano_of(usd: str) -> int:
    return int(Decimal(usd) * 10**9)


def some_ask(rng: random.Random, keys: Sequence[str], *, retries: bool = False) -> Ask:
    """Mostly well-behaved; some stream, some hang up, some providers break off. With retries many attempts fail, of
    most requests only the first."""
    limit = rng.randint(10, 60)
    stream = rng.random() < 0.4
    fault, status = "", 0
    if rng.random() < (0.4 if retries else 0.03):
        fault = rng.choice(
            ("truncate", "no_usage", "reset", "reset") if retries else ("truncate", "no_usage", "reset")
        )
        if retries and rng.random() < 0.5:
            fault, status = "", rng.choice((429, 500, 503))
    return Ask(
        rng.choice(keys),
        rng.randint(20, 150),
        rng.randint(1, limit),
        limit,
        stream,
        rng.choice((0, 0, 20, 60, 150)),
        fault,
        stream and rng.random() < 0.08,
        status,
        f"{rng.getrandbits(64):x}" if retries and rng.random() < 0.8 else "",
    )
