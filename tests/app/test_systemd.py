"""Under systemd: it holds the port, and is told when the gateway serves and when it stops."""

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.cli.conftest import clean_environment

PATIENCE_S = 60.0


def test_a_passed_socket_is_served_and_systemd_is_told(tmp_path: Path) -> None:
    """Connections made before the start are answered after it; READY=1 and STOPPING=1 come when they are true."""
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(PATIENCE_S)
    with told, socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        early = socket.create_connection(listening.getsockname())
        early.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        environ = clean_environment() | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        serve = f"{sys.executable} -m tollkeeper serve --demo"
        run = f"exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec {serve}"
        process = subprocess.Popen(
            ["bash", "-c", run],
            cwd=tmp_path,
            env=environ,
            pass_fds=(listening.fileno(),),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert told.recv(100) == b"READY=1"
            with early, early.makefile("rb") as answer:
                early.settimeout(PATIENCE_S)
                assert answer.readline().startswith(b"HTTP/1.1 200")
            with urllib.request.urlopen(f"{url}/readyz", timeout=PATIENCE_S) as response:
                assert response.status == 200
            process.terminate()
            assert told.recv(100) == b"STOPPING=1"
            out, _ = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0 and f"listens on {url}" in out, out
        finally:
            process.kill()
            process.communicate()
