"""The Redis client: one server, a Sentinel service or a Cluster behind the same calls.

It picks the server by key, follows redirections, loads scripts where they are missing, and repeats a command only if
it certainly did not run or the caller calls it idempotent. Connections are redis_connection.py's, pools are
redis_node.py's; who serves what is asked in redis_topology.py. Nothing here knows of limits or money.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from tollkeeper.domain.errors import InvalidInput, StoreUnavailable
from tollkeeper.governance import redis_settings
from tollkeeper.governance.redis_connection import NOT_RUN, Command, Counters, RedisConnection, ReplyError, Send, end
from tollkeeper.governance.redis_node import Node
from tollkeeper.governance.redis_settings import RedisSettings, Topology
from tollkeeper.governance.redis_topology import SLOTS, Address, dialled, primaries, primary_of, slots_from
from tollkeeper.governance.scripts import SCRIPTS, source
from tollkeeper.observability.logging import logger

HOPS_MAX: Final = 5
"""Redirections and script loads of one command; a healthy cluster needs one."""
BACKOFF_MIN_S: Final = 0.005
BACKOFF_MAX_S: Final = 0.1
MAINTAIN_S: Final = 1.0
"""Pause between two looks at ages, idle connections, sentinels and a cluster that is not well."""
REFRESH_MIN_S: Final = 0.2
"""Least time between two questions for a cluster's slots."""
SOURCES_MAX: Final = 1_000
HEALTH_TTL_MS: Final = 10_000
PROBES_MAX: Final = 1_000_000
_BLOCKING: Final = {
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "WAIT",
    "WAITAOF",
}
_LISTENING: Final = {"MONITOR", "PSUBSCRIBE", "PSYNC", "SSUBSCRIBE", "SUBSCRIBE", "SYNC"}
_CHANGING: Final = {"ASKING", "AUTH", "HELLO", "QUIT", "READONLY", "READWRITE", "RESET", "SELECT", "SHUTDOWN"}
_SPANNING: Final = {"DISCARD", "EXEC", "MULTI", "UNWATCH", "WATCH"}
NOT_SHARED: Final = frozenset(_BLOCKING | _LISTENING | _CHANGING | _SPANNING)
"""Commands that block or change a connection which others use at the same time."""


class NodeHealth(msgspec.Struct, frozen=True):
    """How one server answered. `failed` is None, or the step that failed: *connect*, *ping*, *write*, *read*."""

    address: str
    state: str
    latency_us: int
    """Of the ping; 0 if it failed."""
    failed: str | None = None
    reason: str = ""


class Health(msgspec.Struct, frozen=True):
    """`ok` if every server was pinged and gave back what was just written to it."""

    ok: bool
    latency_us: int
    """The slowest ping."""
    nodes: tuple[NodeHealth, ...]
    failed: str | None = None
    reason: str = ""


class RedisStats(msgspec.Struct, frozen=True):
    """Counts since the client was made; connections as they are now, over all servers."""

    hits: int
    """Commands for which a connection with room was open."""
    misses: int
    """Commands for which none was: they were refused at once, waited for one, or shared a crowded one."""
    timeouts: int
    """Commands given up because Redis did not answer or take them in time."""
    total_conns: int
    idle_conns: int
    stale_conns: int
    """Connections closed for their age or idleness."""
    reconnects: int
    busy_polls: int
    """Times the event loop was kept awake for an answer, and of these how often it did not come in time."""
    busy_polls_in_vain: int
    batches: Mapping[str, int]
    """Writes by the number of commands they carried: `1`, `2-3`, `4-7`, …"""


class RedisClient:
    """Redis for any number of tasks of one event loop.

    Arguments are those of `redis_settings.ENVIRONMENT`: `url`, or `address`, `username`, `password`, `db`; and
    `pool_size`, `min_idle_conns`, `dial_timeout_s`, `read_timeout_s`, `write_timeout_s`, `max_conn_age_s`,
    `idle_timeout_s` (seconds, or text like "300ms"), `busy_poll_us`. Raises ConfigurationError. Connects at `start`.

    `on_connect` is called with each new connection before it is used, with a function that sends on it. It may give a
    name to the server's life, which `run` can pass on to scripts.
    """

    def __init__(
        self, *, on_connect: Callable[[Send], Awaitable[str | None]] | None = None, **arguments: Any
    ) -> None:
        self.settings: RedisSettings = redis_settings.read(**arguments)
        self._user_on_connect = on_connect
        self._counters = Counters()
        self._nodes: dict[str, Node] = {}
        self._only: Node | None = None
        self._slots: list[Node | None] = []
        self._why_no_map = "the cluster has not been asked for its slots yet"
        self._sources: dict[str, str] = {}  # digest → text
        self._digests: dict[str, str] = {}  # name or text → digest
        self._tasks: set[asyncio.Task[None]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = 0.0
        self._refresh_wanted = False
        self._log = logger("governance")
        if self.settings.topology is not Topology.CLUSTER:
            self._only = self._node(self.settings.url, None)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """A client as the environment (default: the process's) describes it; arguments win. ConfigurationError."""
        return cls(**redis_settings.from_environment(environ, **overrides))

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> Self:
        """A client for a URL (forms: redis_settings.py). Raises ConfigurationError."""
        return cls(url=url, **overrides)

    def __repr__(self) -> str:
        return f"<RedisClient {self.settings.url} {self.state}>"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. Raises StoreUnavailable if that fails, and goes on trying in the background until `stop`."""
        self._loop = asyncio.get_running_loop()
        self._spawn(self._maintain())
        if self._only is not None:
            await self._only.start()
            self._only.maintain(self._loop.time())
        else:
            await self._learn_slots()
            down = [node for node in self._nodes.values() if node.state != "up"]
            if down:
                raise StoreUnavailable(
                    f"{down[0].name} of {self.settings.url} is away: {down[0].lead.why}", sent=False
                )

    async def stop(self) -> None:
        """Close all connections; calls without an answer fail."""
        await end(self._tasks)
        await asyncio.gather(*(node.stop() for node in self._nodes.values()))

    # State

    @property
    def states(self) -> Mapping[str, str]:
        """Server → *connecting*, *up* or *away* (calls for it fail at once), *stopped*."""
        return {name: node.state for name, node in self._nodes.items()}

    @property
    def state(self) -> str:
        """The worst of `states`; *away* while a cluster is unknown."""
        found = set(self.states.values()) or {"away"}
        return next(state for state in ("away", "stopped", "connecting", "up") if state in found)

    @property
    def nodes(self) -> Sequence[Node]:
        """The servers: one, or the primaries of a cluster."""
        return tuple(self._nodes.values())

    def server_of(self, key: str) -> str:
        """The name of the server that keeps a key, as in `states`; "" while nobody is known to."""
        if self._only is not None:
            return self._only.name
        node = self._slots[key_slot(key.encode())] if self._slots else None
        return "" if node is None else node.name

    @property
    def misses(self) -> int:
        """As `get_stats` tells: commands so far that got no answer at their first sending."""
        return self._counters.misses

    @property
    def pipelines(self) -> tuple[Sequence[int], Sequence[int], int]:
        """Writes by size: the most commands of each class but the last, writes in each class, commands in all."""
        counts = self._counters.batches
        return [2 ** (n + 1) - 1 for n in range(len(counts) - 1)], tuple(counts), self._counters.commands

    def get_stats(self) -> RedisStats:
        """The counters and connections as they are now."""
        connections = [c for node in self._nodes.values() for c in node.connections]
        counters = self._counters
        names = ["1", *(f"{2**n}-{2 ** (n + 1) - 1}" for n in range(1, len(counters.batches)))]
        return RedisStats(
            hits=max(0, counters.commands - counters.misses),
            misses=counters.misses,
            timeouts=counters.timeouts,
            total_conns=len(connections),
            idle_conns=sum(c.pending == 0 for c in connections),
            stale_conns=counters.stale,
            reconnects=counters.reconnects,
            busy_polls=counters.busy_polls,
            busy_polls_in_vain=counters.in_vain,
            batches={name: count for name, count in zip(names, counters.batches, strict=True) if count},
        )

    async def health(self) -> Health:
        """Ping every server, write a small key and read it back. Never raises; ends within the read timeout."""
        if not self._nodes:
            return Health(False, 0, (), "connect", self._why_no_map)
        nodes = tuple(await asyncio.gather(*(self._health(node) for node in self._nodes.values())))
        bad = next((node for node in nodes if node.failed), None)
        latency_us = max(node.latency_us for node in nodes)
        if bad is not None:
            return Health(False, latency_us, nodes, bad.failed, bad.reason)
        return Health(True, latency_us, nodes)

    async def _health(self, node: Node) -> NodeHealth:
        step, latency_us = "connect", 0
        key, value = self._probe_key(node), secrets.token_hex(8)
        try:
            async with asyncio.timeout(self.settings.read_timeout_s):
                begun_s = monotonic()
                ping = node.send("PING")
                step = "ping"
                await ping
                latency_us = int((monotonic() - begun_s) * 1e6)
                step = "write"
                await node.send("SET", key, value, "PX", HEALTH_TTL_MS)
                step = "read"
                found = await node.send("GET", key)
        except (StoreUnavailable, TimeoutError) as error:
            reason = str(error) or f"no answer within {self.settings.read_timeout_s:g} s"
            return NodeHealth(node.name, node.state, latency_us, step, reason)
        if found != value.encode():
            return NodeHealth(node.name, node.state, latency_us, "read", "it did not give back what was written")
        return NodeHealth(node.name, node.state, latency_us)

    def _probe_key(self, node: Node) -> str:
        """A new key that the server serves."""
        nonce = secrets.token_hex(8)
        if self._only is not None:
            return f"tollkeeper:health:{nonce}"
        tries = (f"tollkeeper:health:{nonce}:{n}" for n in range(PROBES_MAX))
        return next((key for key in tries if self._slots[key_slot(key.encode())] is node), f"tollkeeper:{nonce}")

    # Commands

    def send(self, *parts: Any, key: str | None = None) -> "asyncio.Future[Any]":
        """Queue one command; all commands for a key run in the order of `send` and `run`, on one connection.

        The future yields the reply, or raises StoreUnavailable (`sent` tells whether it may have run; its subclass
        ReplyError if Redis answered with an error). Redirections are followed, in order; only while a cluster moves
        the key's slot from server to server (ASK) may one command overtake another.
        Raises StoreUnavailable at once, with nothing sent, when the server is not up.
        """
        return (self._only or self._node_of(key)).lead.write(parts)

    async def call(self, *parts: Any, key: str | None = None, idempotent: bool = False) -> Any:
        """One command and its reply. It may be sent on any connection: no order among concurrent calls.

        `key` names the server on a cluster; without it any is asked and its redirection followed. The command is
        repeated within the read timeout if it certainly did not run, or was lost and is `idempotent`. Raises
        ReplyError, StoreUnavailable; InvalidInput for commands that block or change a shared connection.
        """
        name = parts[0].decode() if isinstance(parts[0], bytes) else str(parts[0])
        if name.upper() in NOT_SHARED:
            raise InvalidInput(f"{name} blocks or changes a connection that others use: give it one of its own")
        begun_s = monotonic()
        try:
            return await self._send_anywhere(parts, key)
        except StoreUnavailable as error:
            until_s = begun_s + self.settings.read_timeout_s
            return await self._again(error, self._send_anywhere, parts, key, until_s, idempotent)

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        idempotent: bool = False,
        with_life: bool = False,
        within_s: float | None = None,
    ) -> Any:
        """Run a script (its text, or a name of `scripts/`) and give its reply, in order with `send` for `keys[0]`.

        `with_life` adds the name of the server's life as the last argument: of the connection it is sent on.
        All keys must share a slot on a cluster. The script is loaded where it is missing. Repeated as in `call`, but
        for `within_s` if that is given.
        Raises StoreUnavailable; ReplyError, a subclass, when Redis refuses or the script fails.
        """
        digest = self._digests.get(script) or self._digest(script)
        key = keys[0] if keys else None
        parts = ("EVALSHA", digest, len(keys), *keys, *args)
        begun_s = monotonic()
        try:
            lead = (self._only or self._node_of(key)).lead
            return await lead.write((*parts, lead.life) if with_life else parts)
        except StoreUnavailable as error:
            send = self._send_with_life if with_life else self._send_in_order
            until_s = begun_s + (self.settings.read_timeout_s if within_s is None else within_s)
            return await self._again(error, send, parts, key, until_s, idempotent)

    async def run_again(
        self,
        error: StoreUnavailable,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        until_s: float,
        *,
        with_life: bool = False,
    ) -> Any:
        """What `run` does, until `until_s` (monotonic), after a first try that ended in `error`: the caller sent it
        on `lead_of` the first key. For what is idempotent."""
        send = self._send_with_life if with_life else self._send_in_order
        parts = ("EVALSHA", self._digests.get(script) or self._digest(script), len(keys), *keys, *args)
        return await self._again(error, send, parts, keys[0], until_s, True)

    def lead_of(self, key: str) -> RedisConnection:
        """The connection on which all commands for a key go in order. Raises StoreUnavailable on a cluster that is
        not known."""
        return (self._only or self._node_of(key)).lead

    def life_of(self, key: str) -> str:
        """The name that `on_connect` gave the life of the server of a key. Raises StoreUnavailable on a cluster that
        is not known."""
        return (self._only or self._node_of(key)).lead.life

    def know(self, script: str) -> str:
        """Have a script (text or name) loaded on every new connection; its digest, for EVALSHA."""
        return self._digests.get(script) or self._digest(script)

    def _digest(self, script: str) -> str:
        text = source(script) if script in SCRIPTS else script
        digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - what EVALSHA asks for
        if len(self._sources) >= SOURCES_MAX:
            raise InvalidInput(f"more than {SOURCES_MAX} scripts: pass what varies as arguments, not in the text")
        self._sources[digest] = text
        self._digests[script] = digest
        return digest

    def _send_in_order(self, parts: tuple[Any, ...], key: str | None) -> "asyncio.Future[Any]":
        return (self._only or self._node_of(key)).lead.write(parts)

    def _send_with_life(self, parts: tuple[Any, ...], key: str | None) -> "asyncio.Future[Any]":
        lead = (self._only or self._node_of(key)).lead
        return lead.write((*parts, lead.life))

    def _send_anywhere(self, parts: tuple[Any, ...], key: str | None) -> "asyncio.Future[Any]":
        return (self._only or self._node_of(key)).pick().write(parts)

    async def _again(
        self,
        error: StoreUnavailable,
        send: Callable[[tuple[Any, ...], str | None], "asyncio.Future[Any]"],
        parts: tuple[Any, ...],
        key: str | None,
        until_s: float,
        idempotent: bool,
    ) -> Any:
        """Repeat what may be repeated until `until_s` (monotonic); fail at once when away.

        What was sent once may have run, whatever became of it later.
        """
        delay_s = BACKOFF_MIN_S
        self._counters.misses += not isinstance(error, ReplyError)
        sent = error.sent
        while True:
            if isinstance(error, ReplyError):
                if error.code not in NOT_RUN:
                    raise error
            elif (error.sent and not idempotent) or not await self._ready(key, until_s - monotonic()):
                raise _as_sent(error) if sent else error
            if monotonic() + delay_s >= until_s:
                raise _as_sent(error) if sent else error
            try:
                return await send(parts, key)
            except StoreUnavailable as later:
                error, sent = later, sent or later.sent
            await asyncio.sleep(delay_s)
            delay_s = min(BACKOFF_MAX_S, 2 * delay_s)

    async def _ready(self, key: str | None, timeout_s: float) -> bool:
        try:
            node = self._only or self._node_of(key)
        except StoreUnavailable:
            return False
        return await node.lead.ready(timeout_s)

    # Redirections, called for each error reply before its caller sees it

    def _on_refusal(self, connection: RedisConnection, error: ReplyError, command: Command) -> bool:
        """True if the command was sent on, so that its caller need not know."""
        if error.code not in NOT_RUN:
            return False
        if error.code in ("READONLY", "MASTERDOWN") and self._only is not None:
            connection.abandon(str(error))
        if error.code == "CLUSTERDOWN":
            self._refresh_soon()
        if command[2] >= HOPS_MAX:
            return False
        if error.code == "NOSCRIPT":
            return self._load(connection, command)
        if error.code in ("MOVED", "ASK"):
            return self._redirect(connection, error, command)
        return False

    def _load(self, connection: RedisConnection, command: Command) -> bool:
        words = command[1].split(b"\r\n", 5)
        text = self._sources.get(words[4].decode("ascii", "replace")) if len(words) > 4 else None
        if text is None:
            return False
        try:
            connection.forward(command, connection, "SCRIPT", "LOAD", text)
        except StoreUnavailable:
            return False
        return True

    def _redirect(self, connection: RedisConnection, error: ReplyError, command: Command) -> bool:
        try:
            _, slot, where = str(error).split(" ")[:3]
            host, _, port = where.rpartition(":")
            address = (host or (connection.peer or ("localhost", 0))[0], int(port))
            node = self._node(f"{address[0]}:{address[1]}", address)
            if error.code == "MOVED" and self._slots:
                self._slots[int(slot)] = node
                self._refresh_soon()
        except ValueError:
            return False
        before = ("ASKING",) if error.code == "ASK" else ()
        if node.state == "up":
            try:
                node.lead.forward(command, connection, *before)
            except StoreUnavailable:
                return False
        else:
            self._spawn(self._forward_later(node, command, connection, before))
        return True

    async def _forward_later(
        self, node: Node, command: Command, connection: RedisConnection, before: Sequence[str]
    ) -> None:
        """To a server that is not connected yet."""
        try:
            if node.state == "stopped":
                await node.start()
            await node.lead.ready(self.settings.dial_timeout_s)
            if not command[0].done():
                node.lead.forward(command, connection, *before)
        except StoreUnavailable as error:
            if not command[0].done():
                command[0].set_exception(StoreUnavailable(str(error), sent=False))

    # Servers

    def _node_of(self, key: str | None) -> Node:
        """The server of a key on a cluster; any that is up without one."""
        if not self._slots:
            raise StoreUnavailable(f"Redis at {self.settings.url} is away: {self._why_no_map}", sent=False)
        if key is None:
            nodes = list(self._nodes.values())
            return next((node for node in nodes if node.state == "up"), nodes[0])
        node = self._slots[key_slot(key.encode())]
        if node is None:
            self._refresh_soon()
            raise StoreUnavailable(f"no server of {self.settings.url} serves the slot of {key!r}", sent=False)
        return node

    def _node(self, name: str, address: Address | None) -> Node:
        """The server of that name, made if it is new. `start` it."""
        if name not in self._nodes:
            settings = self.settings

            async def dial() -> AbstractConnection:
                if settings.topology is Topology.SENTINEL:
                    return dialled(settings, await primary_of(settings))
                return dialled(settings, address)

            self._nodes[name] = Node(
                name,
                dial,
                settings,
                on_connect=self._on_connect,
                on_refusal=self._on_refusal,
                counters=self._counters,
            )
        return self._nodes[name]

    async def _on_connect(self, send: Send) -> str | None:
        """Each new connection: does the server answer, is it a primary, does it have the scripts?"""
        loads = [send("SCRIPT", "LOAD", text) for text in self._sources.values()]
        first = send("ROLE") if self.settings.topology is Topology.SENTINEL else send("PING")
        role, *_ = await asyncio.gather(first, *loads)
        if self.settings.topology is Topology.SENTINEL and role[0] != b"master":
            raise StoreUnavailable("the sentinels name it, but it is a replica", sent=False)
        return await self._user_on_connect(send) if self._user_on_connect is not None else None

    # The cluster's map

    async def _learn_slots(self) -> None:
        """Ask for the map and connect to its primaries. Raises StoreUnavailable if nobody knows it."""
        self._refreshed_s, self._refresh_wanted = self._loop.time(), False
        rows, asked = await self._ask_slots()
        found = primaries(rows, asked)
        if not found:
            self._why_no_map = f"{asked} serves no slots: is it a cluster?"
            raise StoreUnavailable(f"Redis at {self.settings.url}: {self._why_no_map}", sent=False)
        slots: list[Node | None] = [None] * SLOTS
        for first, last, address in found:
            node = self._node(f"{address[0]}:{address[1]}", address)
            slots[first : last + 1] = [node] * (last - first + 1)
        self._slots = slots
        serving = {node.name for node in slots if node is not None}
        for name in [name for name in self._nodes if name not in serving]:
            self._spawn(self._dismiss(self._nodes.pop(name)))
        fresh = [node for node in self._nodes.values() if node.state == "stopped"]
        await asyncio.gather(*(node.start() for node in fresh), return_exceptions=True)
        for node in fresh:
            node.maintain(self._loop.time())

    async def _ask_slots(self) -> tuple[Sequence[Any], str]:
        """`CLUSTER SLOTS` of the first server that answers, and its host."""
        reasons = []
        for node in [node for node in self._nodes.values() if node.state == "up"]:
            try:
                return await node.send("CLUSTER", "SLOTS"), (node.lead.peer or ("", 0))[0]
            except StoreUnavailable as error:
                reasons.append(str(error))
        for address in self.settings.addresses:
            try:
                return await slots_from(self.settings, address), address[0]
            except StoreUnavailable as error:
                reasons.append(str(error))
        if not self._slots:
            self._why_no_map = reasons[-1]
        raise StoreUnavailable(f"Redis at {self.settings.url}: {'; '.join(reasons)}", sent=False)

    async def _dismiss(self, node: Node) -> None:
        """A server that serves nothing any more: let it finish, then close."""
        deadline_s = self._loop.time() + self.settings.read_timeout_s
        while any(c.pending for c in node.connections) and self._loop.time() < deadline_s:  # noqa: ASYNC110 - rare
            await asyncio.sleep(BACKOFF_MAX_S)
        await node.stop()

    def _refresh_soon(self) -> None:
        """Ask for the map anew; many reasons at once ask once."""
        self._refresh_wanted = True
        if self._only is None and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._spawn(self._refresh())

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._refreshed_s + REFRESH_MIN_S - self._loop.time()))
        try:
            await self._learn_slots()
        except StoreUnavailable as error:
            self._log.warning("redis_cluster_unknown", url=self.settings.url, why=str(error))

    # Upkeep

    async def _maintain(self) -> None:
        settings = self.settings
        pause_s = min(MAINTAIN_S, settings.idle_timeout_s / 4, settings.max_conn_age_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            for node in self._nodes.values():
                node.maintain(self._loop.time())
            if self._only is None:
                if not self._slots or None in self._slots or self.state != "up":
                    self._refresh_soon()
            elif settings.topology is Topology.SENTINEL:
                await self._follow_sentinels(self._only)

    async def _follow_sentinels(self, node: Node) -> None:
        """A primary that was replaced and does not know it yet is left at once."""
        peer = node.lead.peer
        if node.state != "up" or peer is None:
            return
        try:
            named = await primary_of(self.settings)
        except StoreUnavailable:
            return  # no sentinel answers: the primary may be well all the same
        for connection in (node.lead, *node.spares):
            if connection.peer not in (None, named):
                connection.abandon(f"the sentinels name {named[0]}:{named[1]} now")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _as_sent(error: StoreUnavailable) -> StoreUnavailable:
    return error if error.sent else StoreUnavailable(str(error))
