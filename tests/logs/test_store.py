"""One contract for every store: folder, moto (conditional writes), rclone (signatures, no conditional writes) and
Azurite (both), and moto as Google's XML API (conditional writes, a bearer token)."""

import os
import time
from pathlib import Path

import obstore
import pytest

from tests.logs.conftest import store_at
from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.servers.azure import AzuriteServer
from tests.servers.gcs import GoogleServer
from tests.servers.s3 import S3Server
from tollkeeper.domain.errors import ConfigurationError, LogStoreUnavailable
from tollkeeper.logs.sinks import MULTIPART_BYTES_MIN, BucketStore, FolderStore, LogStore, open_store

PATH = "dt=2026-11-23/hour=12/gw-1-2.jsonl.gz"


async def test_an_object_is_written_once_and_never_replaced(store: LogStore) -> None:
    assert await store.create(PATH, b"one", "digest-1")
    assert not await store.create(PATH, b"two", "digest-2")
    assert await store.read(PATH) == b"one"


async def test_the_digest_is_kept_or_known_to_be_unknown(store: LogStore) -> None:
    await store.create(PATH, b"one", "digest-1")
    assert await store.digest(PATH) == (None if isinstance(store, FolderStore) else "digest-1")


async def test_every_object_is_listed_by_its_path(store: LogStore) -> None:
    paths = {f"dt=2026-11-{day}/hour=12/gw-1-2.jsonl.gz" for day in range(10, 20)}
    for path in paths:
        await store.create(path, b"x", "d")
    assert {path async for path in store.list()} == paths


async def test_a_large_object_is_uploaded_in_parts_and_never_replaced(store: LogStore) -> None:
    body = os.urandom(MULTIPART_BYTES_MIN + 5)
    assert await store.create(PATH, body, "digest-1")
    assert await store.read(PATH) == body
    assert await store.digest(PATH) == (None if isinstance(store, FolderStore) else "digest-1")
    assert not await store.create(PATH, body + b"x", "digest-2")
    assert await store.read(PATH) == body


async def test_what_was_deleted_is_gone(store: LogStore) -> None:
    await store.create(PATH, b"one", "d")
    await store.delete(PATH)
    assert not await store.holds(PATH)
    await store.delete(PATH)


def test_gcs_and_azure_are_opened_by_their_own_variables(tmp_path: Path) -> None:
    """No server is asked."""
    account = tmp_path / "account.json"
    account.write_text(
        '{"gcs_base_url": "http://localhost:1", "disable_oauth": true, "client_email": "", '
        '"private_key": "", "private_key_id": ""}'
    )
    store = open_store("gs://bucket/a/b", 1.0, {"GOOGLE_SERVICE_ACCOUNT": str(account)})
    assert isinstance(store, BucketStore) and store.url == "gs://bucket/a/b"
    environ = {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
    assert isinstance(open_store("az://container/logs", 1.0, environ), BucketStore)
    with pytest.raises(ConfigurationError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/logs", 1.0, {})
    for url in ("gs://", "az://a:b@c/x", "gs://b?x=1"):
        with pytest.raises(ConfigurationError, match="LOG_STORE_URL"):
            open_store(url, 1.0, environ)


async def test_an_empty_store_answers_ping_and_lists_nothing(store: LogStore) -> None:
    await store.ping()
    assert [path async for path in store.list()] == []


async def test_what_is_not_there_cannot_be_read(store: LogStore) -> None:
    with pytest.raises(LogStoreUnavailable):
        await store.read(PATH)


async def test_a_wrong_secret_is_told_from_a_store_that_is_away(rclone_server: S3Server) -> None:
    environ = rclone_server.environ | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    store = open_store(rclone_server.url(), 5.0, environ)
    with pytest.raises(LogStoreUnavailable, match="check the credentials") as caught:
        await store.create(PATH, b"one", "d")
    assert "wrong" not in str(caught.value)
    with pytest.raises(LogStoreUnavailable, match="SignatureDoesNotMatch"):
        await store.ping()


async def test_azure_itself_refuses_to_replace_an_object(azurite_server: AzuriteServer) -> None:
    """Whoever writes between our question and our write is not overwritten."""
    store = store_at(azurite_server)
    assert isinstance(store, BucketStore)
    with pytest.MonkeyPatch.context() as patch:

        def not_there(*_: object) -> None:
            raise FileNotFoundError

        patch.setattr(obstore, "head", not_there)
        assert await store.create(PATH, b"one", "digest-1")
        assert not await store.create(PATH, b"two", "digest-2")
    assert await store.read(PATH) == b"one"


async def test_a_wrong_azure_key_is_told_from_a_store_that_is_away(azurite_server: AzuriteServer) -> None:
    environ = azurite_server.environ | {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    store = open_store(azurite_server.url(), 5.0, environ)
    with pytest.raises(LogStoreUnavailable, match="check the credentials") as caught:
        await store.create(PATH, b"one", "d")
    assert "d3Jvbmc" not in str(caught.value)


async def test_a_wrong_google_token_is_told_from_a_store_that_is_away(gcs_server: GoogleServer) -> None:
    store = store_at(gcs_server)
    await store.ping()
    stale = open_store(gcs_server.url(), 5.0, gcs_server.environ | {"GOOGLE_BEARER_TOKEN": "stale"})
    with pytest.raises(LogStoreUnavailable, match="check the credentials") as caught:
        await stale.create(PATH, b"one", "d")
    assert "stale" not in str(caught.value)


async def test_an_azure_container_that_does_not_exist_is_named(azurite_server: AzuriteServer) -> None:
    store = open_store("az://no-such-container/x", 5.0, azurite_server.environ)
    with pytest.raises(LogStoreUnavailable, match="ContainerNotFound"):
        await store.ping()


async def test_a_bucket_that_does_not_exist_is_named_by_ping_and_create(moto_server: S3Server) -> None:
    store = store_at(moto_server, "s3://no-such-bucket/x")
    with pytest.raises(LogStoreUnavailable, match="NoSuchBucket"):
        await store.ping()
    with pytest.raises(LogStoreUnavailable, match="NoSuchBucket"):
        await store.create(PATH, b"one", "d")


async def test_a_store_that_never_answers_is_given_up_in_time(moto_server: S3Server) -> None:
    async with FaultyProxy(moto_server.port) as proxy:
        proxy.fault = Fault.SILENT
        store = store_at(moto_server, timeout_s=0.3, port=proxy.port)
        started = time.monotonic()
        for call in (store.ping(), store.create(PATH, b"x", "d"), store.read(PATH), store.digest(PATH)):
            with pytest.raises(LogStoreUnavailable):
                await call
        with pytest.raises(LogStoreUnavailable):
            _ = [path async for path in store.list()]
        assert time.monotonic() - started < 5 * 0.3 + 1


async def test_a_refused_connection_is_unavailable(tmp_path: Path) -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    with pytest.raises(LogStoreUnavailable):
        await open_store("s3://bucket/x", 1.0, environ).create(PATH, b"x", "d")


async def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    store = open_store((tmp_path / "a b" / "logs").as_uri(), 5.0)
    assert isinstance(store, FolderStore)
    assert (tmp_path / "a b" / "logs").stat().st_mode & 0o777 == 0o700
    await store.create(PATH, b"x", "d")
    assert (tmp_path / "a b" / "logs" / PATH).read_bytes() == b"x"


async def test_a_folder_that_is_gone_is_not_ready(tmp_path: Path) -> None:
    store = open_store((tmp_path / "logs").as_uri(), 5.0)
    (tmp_path / "logs").rmdir()
    with pytest.raises(LogStoreUnavailable, match="is gone"):
        await store.ping()


@pytest.mark.parametrize(
    "url",
    [
        "logs",
        "file://host/path",
        "file:relative",
        "s3://",
        "s3:///x",
        "s3://a:b@bucket/x",
        "s3://bucket:80/x",
        "ftp://b",
    ],
)
def test_a_url_that_cannot_work_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="LOG_STORE_URL") as caught:
        open_store(url, 1.0, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert "a:b@" not in str(caught.value)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(ConfigurationError, match="cannot make the folder"):
        open_store((tmp_path / "logs").as_uri(), 1.0)


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_SECRET_ACCESS_KEY": "b"}, "AWS_ACCESS_KEY_ID is not set"),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "minio:9000"},
            "AWS_ENDPOINT_URL",
        ),
    ],
)
def test_missing_credentials_say_what_to_set(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        open_store("s3://bucket/prefix", 1.0, environ)


def test_a_role_of_the_environment_is_enough() -> None:
    environ = {"AWS_METADATA_ENDPOINT": "http://169.254.169.254"}
    assert isinstance(open_store("s3://bucket", 1.0, environ), BucketStore)


async def test_the_endpoint_for_s3_alone_wins(moto_server: S3Server) -> None:
    environ = moto_server.environ | {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": moto_server.endpoint + "/",
    }
    await open_store(moto_server.url(), 5.0, environ).ping()
