"""The running gateway, as an operator meets it: real processes, the printed commands, signals, restarts."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Command, clean_environment
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer, free_port, wait_until

READY_S = 60.0


class Running:
    """A long-running command: its output so far, and its end."""

    def __init__(self, args: tuple[str, ...], workdir: Path, environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=workdir,
            env=clean_environment() | environ,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text: str) -> "Running":
        """Until it has said this."""
        deadline = time.monotonic() + READY_S
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        return self

    @property
    def url(self) -> str:
        found = re.search(r"listens on (http://\S+?)(?:/v1)?\n", self.output)
        assert found, self.output
        return found[1]

    def commands(self) -> list[str]:
        """The printed curl lines, literally."""
        return [line.strip() for line in self.output.splitlines() if line.strip().startswith("curl ")]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(READY_S)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


Start = Callable[..., Running]


@pytest.fixture
def start(workdir: Path) -> Iterator[Start]:
    """Start the command; whatever still runs at the end is killed."""
    started: list[Running] = []

    def begin(*args: str, **environ: str) -> Running:
        running = Running(args, workdir, environ)
        started.append(running)
        return running

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
            running._reader.join(5)
            assert running.process.stdout is not None
            running.process.stdout.close()


def shell(command: str) -> str:
    """Run a line as a user would paste it; standard output."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(url: str, secret: str, model: str = "gpt-4o-mini") -> int:
    """The HTTP status of one chat request."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    line = f"curl -s -o /dev/null -w '%{{http_code}}' {url}/v1/chat/completions -H 'Authorization: Bearer {secret}'"
    return int(shell(f"{line} -H 'Content-Type: application/json' -d '{body}'"))


def usage_rows(process: Command, **environ: str) -> tuple[bool, list[Any]]:
    answered = process("usage", "--json", **environ)
    assert answered.code == 0, answered.err
    return answered.json["synced"], answered.json["usage"]


def test_the_demo_from_start_to_restart(start: Start, process: Command, workdir: Path) -> None:
    """The printed lines work as they stand; usage shows the spend at once; neither Ctrl-C nor a restart loses it."""
    demo = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    for page in ("docs", "metrics", "readyz"):
        assert f"{demo.url}/{page}" in demo.output
    chat, stream, claude = demo.commands()
    answered = json.loads(shell(chat))
    assert answered["choices"][0]["message"]["content"]
    events = shell(stream).strip().split("\n\n")
    assert len(events) > 2
    assert events[-1] == "data: [DONE]"
    assert json.loads(shell(claude))["content"][0]["text"]
    assert json.loads(shell(f"curl -s {demo.url}/readyz"))["ready"] is True

    shown = process("limits", "show", "demo", "--json").json["limits"]
    assert {limit["limit_kind"]: limit["used"] for limit in shown}["requests"] == "3"
    synced, rows = usage_rows(process)
    assert synced
    (row,) = rows
    assert (row["key_name"], row["requests"]) == ("demo", 3)
    assert row["cost_nano"] > 0
    assert {limit["limit_kind"]: limit["used"] for limit in shown}["budget"] == row["cost_usd"]
    assert "demo" in process("usage").out

    assert demo.stop(signal.SIGINT) == 0, demo.output
    assert demo.output.endswith("stopped cleanly\n")
    assert usage_rows(process) == (False, rows)
    logs = list((workdir / "tollkeeper-data" / "logs").rglob("*.jsonl.gz"))
    lines = [line for log in logs for line in shell(f"zcat {log}").splitlines()]
    assert len(lines) == 3
    assert sum(json.loads(line)["cost_nano"] for line in lines) == row["cost_nano"]

    again = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    assert status(demo.url.rsplit(":", 1)[0] + ":" + again.url.rsplit(":", 1)[1], _secret(again)) == 200
    assert status(again.url, _secret(demo)) == 401
    _, (later,) = usage_rows(process)
    assert (later["requests"], later["cost_nano"] > row["cost_nano"]) == (4, True)
    assert process("limits", "reset", "demo").out == "limits of demo are reset\n"
    assert again.stop(signal.SIGTERM) == 0, again.output


def _secret(running: Running) -> str:
    found = re.search(r"tk_[\w-]{43}", running.output)
    assert found
    return found[0]


def test_only_one_gateway_uses_a_data_directory_and_a_port(start: Start, process: Command) -> None:
    """Both refusals are one clear line."""
    demo = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    port = demo.url.rsplit(":", 1)[1]
    refused = process("serve", "--demo", "--port", port, TOLLKEEPER_DATA_DIR="other")
    assert (refused.code, refused.out) == (1, "")
    assert (
        refused.err == f"error: port {port} of 127.0.0.1 is in use; choose another with --port or TOLLKEEPER_PORT\n"
    )
    refused = process("serve", "--demo", "--port", "0")
    assert (refused.code, refused.out) == (1, "")
    assert f"in use by another gateway (process {demo.process.pid})" in refused.err
    assert demo.stop() == 0


def test_a_configured_gateway_in_front_of_the_simulated_provider(
    start: Start, process: Command, workdir: Path
) -> None:
    """`simulate` alone, a provider from the file; a new key works and a revoked one stops within two seconds."""
    simulator = start("simulate", "--port", "0", "--journal", "journal.jsonl").wait_for("listens on")
    (workdir / "tollkeeper.toml").write_text(
        f'[providers.sim]\nbase_url = "{simulator.url}/v1"\ndialect = "openai"\nprices = "openai"\n'
    )
    gateway = start("serve", "--port", "0").wait_for("health")
    secret = process("keys", "create", "k", "--json").json["secret"]
    assert _within_two_seconds(lambda: status(gateway.url, secret) == 200)
    process("keys", "revoke", "k")
    assert _within_two_seconds(lambda: status(gateway.url, secret) == 401)
    assert gateway.stop(signal.SIGTERM) == 0, gateway.output
    assert simulator.stop(signal.SIGTERM) == 0, simulator.output
    assert (workdir / "journal.jsonl").read_text().count("\n") >= 1


def _within_two_seconds(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_shared_services(start: Start, process: Command, redis_server: RedisServer, postgres: PostgresServer) -> None:
    """On Redis and PostgreSQL: refused until migrated, then the same words as embedded; spend is in PostgreSQL."""
    environ = {
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": postgres.create_database("serve"),
        "TOLLKEEPER_DIGEST_KEY": "d" * 64,
        "TOLLKEEPER_ADMIN_TOKEN": "t" * 40,
    }
    refused = process("serve", "--demo", "--port", "0", **environ)
    assert refused.code == 1
    assert "run `tollkeeper migrate` once" in refused.err
    assert process("migrate", **environ).code == 0
    assert process("doctor", **environ).code == 0
    demo = start("serve", "--demo", "--port", "0", **environ).wait_for("Ctrl-C stops")
    shell(demo.commands()[0])
    synced, (row,) = usage_rows(process, **environ)
    assert (synced, row["requests"]) == (True, 1)
    assert demo.stop() == 0, demo.output
    assert usage_rows(process, **environ) == (False, [row])


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        (
            {"WEB_CONCURRENCY": "4"},
            "4 workers (--workers, WEB_CONCURRENCY), but without Redis the limits live in one",
        ),
        ({"WEB_CONCURRENCY": "2", "REDIS_ADDRESS": "h"}, "the demo, with the provider in it, is one process"),
        ({"WEB_CONCURRENCY": "many"}, "server.workers (WEB_CONCURRENCY): must be a whole number"),
        ({"WEB_CONCURRENCY": "65"}, "server.workers (WEB_CONCURRENCY): 65 is above 64"),
        ({"REDIS_PASSWORD": "hush"}, "(REDIS_PASSWORD): there is no Redis yet: set REDIS_URL or REDIS_ADDRESS too"),
        ({"REDIS_ADDRESS": "h", "REDIS_POOL_SIZE": "0"}, "store.pool_size: 0 must be a number above zero"),
        ({"REDIS_ADDRESS": "h", "REDIS_URL": "redis://h"}, "address (REDIS_ADDRESS): REDIS_URL is given too"),
    ],
)
def test_what_cannot_work_is_refused_at_start(start: Start, environ: dict[str, str], why: str) -> None:
    """With the variable's name and what to do instead."""
    running = start("serve", "--demo", "--port", "0", **environ)
    assert running.ended() == 1
    assert why in running.output
    assert "Traceback" not in running.output and "hush" not in running.output


def test_workers_that_cannot_start_say_so_once(
    start: Start, redis_server: RedisServer, postgres: PostgresServer, workdir: Path
) -> None:
    """The first one alone is tried; its reason is the command's, and so is its exit code."""
    (workdir / "tollkeeper.toml").write_text('[providers.x]\nbase_url = "http://x/v1"\ndialect = "openai"\n')
    database = postgres.create_database("never_migrated")
    environ = {"REDIS_URL": redis_server.url, "DATABASE_URL": database, "TOLLKEEPER_DIGEST_KEY": "d" * 64}
    running = start("serve", "--workers", "3", "--port", "0", **environ)
    assert running.ended() == 1
    assert running.output.count("run `tollkeeper migrate` once") == 1, running.output
    assert "Traceback" not in running.output


def test_a_second_process_on_the_memory_store_is_refused(start: Start) -> None:
    """Limits of one data directory live in one process; with Redis there may be as many as one wants."""
    first = start("serve", "--demo", "--port", "0").wait_for("Then: tollkeeper usage")
    second = start("serve", "--demo", "--port", "0")
    assert second.ended() == 1
    assert "is in use by another gateway" in second.output
    assert first.stop() == 0


def test_redis_by_its_address(start: Start, own_redis: RedisServer) -> None:
    """REDIS_ADDRESS, REDIS_DB and REDIS_TLS are enough."""
    own_redis.stop()
    own_redis.port = free_port()
    own_redis.start()
    environ = {"REDIS_ADDRESS": f"127.0.0.1:{own_redis.port}", "REDIS_DB": "2"}
    running = start("serve", "--demo", "--port", "0", **environ).wait_for("Then: tollkeeper usage")
    shell(running.commands()[0])
    assert own_redis.info("keyspace", "db2").startswith("keys=")
    assert running.stop() == 0


def test_reconciliation_without_a_gateway(
    start: Start, process: Command, own_redis: RedisServer, postgres: PostgresServer
) -> None:
    """A gateway was killed before its spend was in the database: Redis and its outbox are read as they are, whoever
    has them; after the next start and clean stop all agree."""
    own_redis.stop()
    own_redis.port = free_port()
    own_redis.start()
    environ = {
        "REDIS_URL": f"redis://127.0.0.1:{own_redis.port}",
        "DATABASE_URL": postgres.create_database("reconciled"),
        "TOLLKEEPER_DIGEST_KEY": "d" * 64,
    }
    assert process("migrate", **environ).code == 0
    demo = start("serve", "--demo", "--port", "0", **environ).wait_for("Ctrl-C stops")
    assert any("choices" in shell(demo.commands()[0]) for _ in range(20)), demo.output
    wait_until(
        lambda: bool(own_redis.lines("KEYS", "changed:*")), "a settlement, which an answer does not wait for", 60
    )
    demo.process.kill()
    demo.ended()
    waiting = process("reconcile", "--no-logs", "--json", **environ)
    assert (waiting.code, waiting.json["store_asked"]) == (1, True), waiting.out + waiting.err + demo.output
    (row,) = waiting.json["accounts"]
    assert float(row["store_usd"]) > 0 and float(row["database_usd"]) == 0 and row["explained"], row
    again = start("serve", "--demo", "--port", "0", **environ).wait_for("Ctrl-C stops")
    assert again.stop(signal.SIGTERM) == 0, again.output
    settled = process("reconcile", "--no-logs", "--json", **environ)
    assert (settled.code, settled.json["store_asked"]) == (0, True), settled.out + settled.err
    assert settled.json["accounts"][0]["store_usd"] == row["store_usd"]
    own_redis.kill()
    away = process("reconcile", "--no-logs", **environ)
    assert away.code not in (0, None) and "Traceback" not in away.err, away.err


def test_reconciliation_and_corrections(start: Start, process: Command) -> None:
    """Store, database and logs agree after a clean stop; an adjustment makes a difference that is explained."""
    demo = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    shell(demo.commands()[0])
    waiting = process("reconcile", "--json")
    assert waiting.code == 1 and waiting.json["store_asked"], waiting.err
    (row,) = waiting.json["accounts"]
    assert not row["agrees"] and row["explained"], row
    assert demo.stop(signal.SIGINT) == 0
    settled = process("reconcile", "--json")
    assert (settled.code, settled.json["agree"], settled.json["store_asked"]) == (0, True, False), settled.out
    again = start("serve", "--demo", "--port", "0").wait_for("Ctrl-C stops")
    refused = process("usage", "corrections", "adjust", "key", "demo", "--amount=-0.01", "--note", " ")
    assert refused.code == 1 and "say why" in refused.err
    issued = process("usage", "corrections", "adjust", "key", "demo", "--amount=0.01", "--note", "a bill", "--json")
    assert issued.json["applied"], issued.err
    shown = process("usage", "corrections", "show", issued.json["attempt"])
    assert "a bill" in shown.out and "adjusted" in shown.out
    (charge,) = process("usage", "corrections", "list", "--key", "demo", "--json").json["data"]
    assert (charge["attempt"], charge["cost_usd"]) == (issued.json["attempt"], "0.01")
    differing = process("reconcile")
    assert differing.code == 1 and "adjusted by an operator" in differing.out and "explained" in differing.out
    back = process("usage", "corrections", "apply", issued.json["attempt"], "--cost", "0", "--note", "a mistake")
    assert back.code == 0, back.err
    agreed = process("reconcile")
    assert agreed.code == 0 and "all agree" in agreed.err, agreed.out
    assert again.stop(signal.SIGTERM) == 0, again.output


def test_the_control_plane_on_a_listener_of_its_own(start: Start, process: Command) -> None:
    """Then the public one serves applications and probes and nothing else; commands find the other one."""
    admin_port = str(free_port())
    running = start("serve", "--demo", "--port", "0", TOLLKEEPER_ADMIN_PORT=admin_port).wait_for("Ctrl-C stops")
    admin = f"http://127.0.0.1:{admin_port}"
    assert f"  admin     {admin}\n" in running.output and f"{admin}/docs" in running.output
    code = "curl -s -o /dev/null -w '%{{http_code}}' {}"
    answers = {
        path: (shell(code.format(running.url + path)), shell(code.format(admin + path)))
        for path in ("/admin/v1/keys", "/docs", "/openapi.json", "/dashboard", "/healthz", "/readyz", "/v1/models")
    }
    assert {path: public for path, (public, _) in answers.items()} == {
        "/admin/v1/keys": "404",
        "/docs": "404",
        "/openapi.json": "404",
        "/dashboard": "404",
        "/healthz": "200",
        "/readyz": "200",
        "/v1/models": "401",
    }
    assert answers["/admin/v1/keys"][1] == "401" and answers["/docs"][1] == "200"
    assert answers["/dashboard"][1] in ("200", "303", "307") and answers["/v1/models"][1] == "404"
    assert process("limits", "show", "demo").code == 0
    taken = process("serve", "--demo", TOLLKEEPER_PORT="0", TOLLKEEPER_ADMIN_PORT=admin_port)
    assert taken.code == 1 and "admin.port: cannot listen on 127.0.0.1:" in taken.err
    assert running.stop() == 0
