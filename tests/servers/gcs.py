"""Google Cloud Storage's XML API on a private port: moto behind a proxy that translates what Google spells otherwise.

Google documents its XML API as interoperable with S3: paths, listing, multipart uploads and errors are the same. What
differs, and what is translated here, is the credential (a bearer token, which is checked), the precondition of a
write (`x-goog-if-generation-match: 0` for `If-None-Match: *`) and the prefix of metadata.
"""

import http.client
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.servers.s3 import S3Server

TOKEN = "ya29.a-token-of-the-tests"
_DROPPED = {"authorization", "host", "connection", "transfer-encoding", "content-length", "server", "date"}
_SIGNED = "AWS4-HMAC-SHA256 Credential=tests/20261101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto asks who it is, and takes any signature."""
_DENIED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AuthenticationRequired</Code>"
    b"<Message>Authentication required.</Message></Error>"
)


class GoogleServer:
    """A bucket of moto's, spoken to as Google's. `environ` is what a client needs; `url()` gives a prefix each."""

    def __init__(self, moto: S3Server) -> None:
        self.bucket = moto.bucket
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _translator(moto.port))
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environ = {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_BEARER_TOKEN": TOKEN}
        Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, prefix: str | None = None) -> str:
        return f"gs://{self.bucket}/{prefix or uuid.uuid4().hex[:12]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _translator(port: int) -> type[BaseHTTPRequestHandler]:
    class Translator(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"Content-Type": "application/xml"}, _DENIED)
                return
            headers = {"Authorization": _SIGNED}
            for spelled, value in self.headers.items():
                name = spelled.lower()
                if name == "x-goog-if-generation-match":
                    assert value == "0", "only `create` is asked for"
                    headers["If-None-Match"] = "*"
                elif name not in _DROPPED:
                    headers[name.replace("x-goog-meta-", "x-amz-meta-")] = value
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            given = {
                name.lower().replace("x-amz-meta-", "x-goog-meta-"): value
                for name, value in answer.getheaders()
                if (name.lower() not in _DROPPED and not name.lower().startswith("x-amz-")) or "meta-" in name.lower()
            }
            if self.command == "HEAD":
                given["Content-Length"] = answer.getheader("Content-Length") or "0"
            self._answer(answer.status, given, content)
            upstream.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815 - http.server's names

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing is told."""

    return Translator


@pytest.fixture(scope="session")
def gcs_server(moto_server: S3Server) -> Iterator[GoogleServer]:
    server = GoogleServer(moto_server)
    yield server
    server.stop()
