"""How many governed requests a second, and how much latency is added? Ours next to nginx on the same upstream."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.servers.gateway import GatewayProcess, SimulatorProcess
from tests.servers.redis import RedisServer
from tests.servers.s3 import free_port

from benchmarks.table import table

QUESTION = "Governed requests through the gateway, next to nginx as a plain reverse proxy"
NOTES = (
    "`POST /v1/chat/completions`, answers of about 20 tokens from the simulated provider. Every request of ours is "
    "authenticated, admitted against requests and tokens per minute, concurrency and a monthly budget, settled, "
    "written to the outbox, recorded in the log store and counted in the metrics; nginx does none of that. The "
    "system under test is pinned to one core, and our other gateways are frozen; upstream, load generator (wrk) and "
    "Redis share the other core. Medians of the rounds; *added* is p50 less the direct p50 at the same number of "
    "connections."
)
ROUNDS, SECONDS = 3, 4
CONNECTIONS = (1, 32)
OURS, THEIRS = 0, 1  # cores
BODY = (
    '{"model":"gpt-4o-mini","max_tokens":64,"messages":[{"role":"user",'
    '"content":"Say something about the sea. [[sim input=12 output=20]]"}]}'
)


class Figure(NamedTuple):
    """One run of wrk; latencies in ms."""

    per_second: float
    p50: float
    p99: float
    requests: int
    failed: int
    """Answers other than 2xx or 3xx, and connections that broke."""


def wrk(url: str, connections: int, script: Path, *, seconds: int = SECONDS, strict: bool = True) -> Figure:
    """One round. If `strict`, raises RuntimeError if any answer was not a 200."""
    command = [
        *pinned(THEIRS),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", text)))
    if failed and strict:
        raise RuntimeError(f"{url}:\n{text}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    latencies = {name: _ms(value) for name, value in re.findall(r"(50|99)%\s+([\d.]+\w+)", text)}
    assert rate is not None and count is not None
    return Figure(float(rate[1]), latencies["50"], latencies["99"], int(count[1]), failed)


def _ms(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def pinned(core: int) -> list[str]:
    """The prefix that pins a command to a core."""
    return ["taskset", "-c", str(core)] if (os.cpu_count() or 1) > 1 else []


def pin(pid: int, core: int) -> None:
    """Pin a running process and its threads."""
    if pinned(core):
        subprocess.run(["taskset", "-a", "-p", "-c", str(core), str(pid)], check=True, capture_output=True)


def lua(folder: Path, secret: str, headers: Mapping[str, str] | None = None) -> Path:
    """wrk's request."""
    script = folder / "request.lua"
    more = "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in (headers or {}).items())
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = '{BODY}'\nwrk.headers['Content-Type'] = 'application/json'\n"
        f"wrk.headers['Authorization'] = 'Bearer {secret}'\n{more}"
    )
    return script


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[tuple[str, int]]:
    """nginx as a reverse proxy with keep-alive to the upstream, one worker; its URL and pid."""
    port, program = free_port(), shutil.which("nginx") or "/usr/sbin/nginx"
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;\n"
        f"scgi_temp_path s; keepalive_requests 100000000; upstream sim {{ server {upstream.removeprefix('http://')};\n"
        f"keepalive 512; keepalive_requests 100000000; }} server {{ listen 127.0.0.1:{port}; location / {{\n"
        'proxy_pass http://sim; proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n'
    )
    process = subprocess.Popen(
        [*pinned(OURS), program, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def governed(
    folder: Path, upstream: str, environ: dict[str, str], scopes: int, more: str = ""
) -> tuple[GatewayProcess, str]:
    """A gateway with a key under limits and a budget that are never reached. `more`: of its configuration."""
    gateway = GatewayProcess(folder, upstream, environ, more)
    limits = {"rpm": 10**9, "tpm": 10**12, "max_parallel": 10_000, "budgets": {"month": "1000000"}}
    request: dict[str, object] = {"name": "bench", "limits": limits}
    if scopes == 3:
        gateway.admin("POST", "/organisations", {"name": "org", "limits": limits})
        gateway.admin("POST", "/teams", {"name": "team", "organisation": "org", "limits": limits})
        request["team"] = "team"
    secret = str(gateway.admin("POST", "/keys", request)["secret"])
    gateway.stop()  # what is measured serves requests and is not administered
    gateway.launch()
    gateway.wait_until_ready()
    pin(gateway.process.pid, OURS)
    return gateway, secret


def others(stack: ExitStack) -> tuple[Path, SimulatorProcess, RedisServer]:
    """A folder, the simulated provider and a Redis, on the other core."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    simulator = SimulatorProcess(folder)
    stack.callback(simulator.kill)
    pin(simulator.process.pid, THEIRS)
    redis = RedisServer(folder)
    redis.start()
    stack.callback(redis.stop)
    assert redis.process is not None
    pin(redis.process.pid, THEIRS)
    return folder, simulator, redis


def ours(
    stack: ExitStack, folder: Path, simulator: SimulatorProcess, redis: RedisServer
) -> list[tuple[str, GatewayProcess, str]]:
    """Our gateways with everything on, on the stores and with the scopes that are compared; each with a key."""
    made = []
    for number, (name, environ, scopes) in enumerate(
        (
            ("memory", {}, 1),
            ("Redis", {"REDIS_URL": redis.url}, 1),
            ("Redis, key + team + organisation", {"REDIS_URL": redis.url}, 3),
        )
    ):
        gateway, secret = governed(folder / f"ours-{number}", simulator.url, environ, scopes)
        stack.callback(gateway.kill)
        made.append((f"tollkeeper, {name}", gateway, secret))
    return made


def run() -> str:
    """The table."""
    with ExitStack() as stack:
        folder, simulator, redis = others(stack)
        proxy, _ = stack.enter_context(nginx(folder, simulator.url))
        targets: list[tuple[str, str, str]] = [
            ("direct", simulator.url, "none"),
            ("nginx reverse proxy", proxy, "none"),
        ]
        made = ours(stack, folder, simulator, redis)
        targets += [(name, gateway.url, secret) for name, gateway, secret in made]
        return measure(folder, targets, [gateway for _, gateway, _ in made])


def leave_alone(url: str, gateways: list[GatewayProcess]) -> None:
    """Freeze our gateways but the one of that URL: what each has still to ship of its round is no other's cost."""
    for gateway in gateways:
        gateway.process.send_signal(signal.SIGCONT if gateway.url == url else signal.SIGSTOP)


def measure(folder: Path, targets: list[tuple[str, str, str]], gateways: list[GatewayProcess]) -> str:
    """Rounds over all targets in turn, so that noise hits all alike."""
    figures: dict[tuple[str, int], list[Figure]] = {}
    for _ in range(ROUNDS):
        for connections in CONNECTIONS:
            for name, url, secret in targets:
                script = lua(folder, secret)
                leave_alone(url, gateways)
                figures.setdefault((name, connections), []).append(
                    wrk(f"{url}/v1/chat/completions", connections, script)
                )
    rows = []
    for connections in CONNECTIONS:
        direct = _median(figures["direct", connections], lambda f: f.p50)
        proxy = _median(figures["nginx reverse proxy", connections], lambda f: f.per_second)
        for name, _, _ in targets:
            runs = figures[name, connections]
            rate, p50, p99 = (
                _median(runs, get) for get in (lambda f: f.per_second, lambda f: f.p50, lambda f: f.p99)
            )
            cells = (f"{rate:,.0f}", f"{rate / proxy:.2f}", f"{p50:.2f}", f"{p99:.2f}", f"{p50 - direct:.2f}")
            rows.append((f"{name}, {connections} connection{'s' * (connections > 1)}", *cells))
    return table(("", "requests/s", "÷ nginx", "p50 ms", "p99 ms", "added ms"), rows)


def _median(figures: list[Figure], get: Callable[[Figure], float]) -> float:
    return statistics.median(map(get, figures))
