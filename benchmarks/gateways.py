"""How do other gateways do on the same core, upstream and load? They need `make bench-peers`."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.servers.gateway import GatewayProcess
from tests.servers.s3 import free_port

from benchmarks.gateway import BODY, OURS, Figure, leave_alone, lua, nginx, others, ours, pinned, wrk
from benchmarks.table import table

QUESTION = "Next to other gateways: throughput, latency, processor time and memory from 1 to 512 connections"
NOTES = (
    "The same request, upstream and pinning as above. *Tollkeeper* does all it promises. *LiteLLM* has "
    "one worker, a master key and a deployment with limits per minute; its keys and budgets need a database engine "
    "that is fetched when it is set up, and are not on: it does less than it would have to. *Portkey* is its "
    "open-source gateway in Node, which has neither keys, limits nor budgets: it forwards. *CPU* is processor time "
    "of the gateway's processes a request, *memory* their resident set after the round. One round of each number of "
    "connections; *failed* counts answers other than 200 and broken connections."
)
CONNECTIONS: Final = (1, 8, 32, 128, 512)
LITELLM: Final = Path(__file__).parents[1] / ".bench" / "litellm"
PORTKEY: Final = Path(__file__).parents[1] / ".bench" / "portkey"
START_S: Final = 180
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MASTER: Final = "sk-bench"


class Target(NamedTuple):
    """What is measured: its first process and how it is asked."""

    name: str
    url: str
    pid: int
    secret: str
    headers: dict[str, str]


@contextmanager
def started(
    command: list[str], folder: Path, environ: dict[str, str], url: str, headers: dict[str, str]
) -> Iterator[int]:
    """A process on our core that has answered one request; its pid. Raises RuntimeError with the end of its log."""
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*pinned(OURS), *command], cwd=folder, env=os.environ | environ, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url, headers):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _answers(url: str, headers: dict[str, str]) -> bool:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", BODY.encode(), {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def litellm(folder: Path, upstream: str) -> Iterator[Target]:
    """LiteLLM's proxy with one worker."""
    port = free_port()
    parameters = {"model": "openai/gpt-4o-mini", "api_base": f"{upstream}/v1", "api_key": "sk-upstream"}
    config = {  # JSON is YAML
        "model_list": [{"model_name": "gpt-4o-mini", "litellm_params": parameters | {"rpm": 10**9, "tpm": 10**12}}],
        "general_settings": {"master_key": _MASTER},
        "litellm_settings": {"telemetry": False},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [f"{LITELLM}/bin/python", f"{LITELLM}/bin/litellm", "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {_MASTER}"}
    with started(command, folder, {"LITELLM_LOG": "ERROR"}, url, headers) as pid:
        yield Target("LiteLLM proxy (keys and budgets off)", url, pid, _MASTER, {})


@contextmanager
def portkey(folder: Path, upstream: str) -> Iterator[Target]:
    """Portkey's gateway, told by headers where to go."""
    port = free_port()
    server = PORTKEY / "node_modules/@portkey-ai/gateway/build/start-server.js"
    environ = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}
    url = f"http://127.0.0.1:{port}"
    with started(
        ["node", str(server), f"--port={port}", "--headless"],
        folder,
        environ,
        url,
        headers | {"Authorization": "Bearer x"},
    ) as pid:
        yield Target("Portkey gateway (forwards only)", url, pid, "x", headers)


def _processes(pid: int) -> Iterator[int]:
    """A process and all that came from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            for child in (task / "children").read_text().split():
                yield from _processes(int(child))


def cpu_s(pid: int) -> float:
    """Processor time of a process and its children so far."""
    total = 0
    for each in _processes(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory_mib(pid: int) -> float:
    """Resident set of a process and its children now."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in _processes(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run() -> str:
    """The table."""
    with ExitStack() as stack:
        folder, simulator, redis = others(stack)
        made = ours(stack, folder, simulator, redis)
        targets = [Target(name, gateway.url, gateway.process.pid, secret, {}) for name, gateway, secret in made]
        for name, there, start in (("litellm", LITELLM, litellm), ("portkey", PORTKEY, portkey)):
            where = folder / name
            where.mkdir()
            if there.exists():
                targets.append(stack.enter_context(start(where, simulator.url)))
        proxy = folder / "nginx"
        proxy.mkdir()
        address, pid = stack.enter_context(nginx(proxy, simulator.url))
        targets.append(Target("nginx reverse proxy", address, pid, "none", {}))
        return measure(folder, targets, [gateway for _, gateway, _ in made])


def measure(folder: Path, targets: list[Target], gateways: list[GatewayProcess]) -> str:
    """All targets in turn for each number of connections."""
    rows = []
    for connections in CONNECTIONS:
        for target in targets:
            script = lua(folder, target.secret, target.headers)
            leave_alone(target.url, gateways)
            wrk(f"{target.url}/v1/chat/completions", min(8, connections), script, seconds=1)  # warm
            before = cpu_s(target.pid)
            figure: Figure = wrk(f"{target.url}/v1/chat/completions", connections, script, strict=False)
            spent = cpu_s(target.pid) - before
            cells = (
                f"{figure.per_second:,.0f}",
                f"{figure.p50:.2f}",
                f"{figure.p99:.1f}",
                f"{spent / max(1, figure.requests) * 1e6:,.0f}",
                f"{memory_mib(target.pid):,.0f}",
                str(figure.failed),
            )
            rows.append((f"{target.name}, {connections} connection{'s' * (connections > 1)}", *cells))
    return table(("", "requests/s", "p50 ms", "p99 ms", "CPU µs", "memory MiB", "failed"), rows)


if shutil.which("wrk") is None:
    raise SystemExit("wrk is missing: run `make servers`")
