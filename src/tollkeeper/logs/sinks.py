"""Object stores: a folder or a bucket of S3, GCS or Azure behind one small interface; the only home of obstore.

Knows paths and bytes, not records. Every call has a deadline and is tried once: repeating is the shipper's. Every
foreign error becomes `LogStoreUnavailable`, with the store's own reason and without what the store quotes of the
request.

`create` never replaces an object of ours. A folder and S3 enforce that themselves (a hard link, If-None-Match);
some S3 servers ignore the precondition and would overwrite, so a bucket is asked first whether the object exists.
That leaves a gap only for two writers of the same name at the same moment, on such a server, and two writers of the
same name are by construction writing the same records.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from tollkeeper.domain.errors import ConfigurationError, LogStoreUnavailable
from tollkeeper.logs.blocking import BlockingCalls
from tollkeeper.settings import mask_url

T = TypeVar("T")
Cloud: TypeAlias = S3Store | GCSStore | AzureStore


class StoredObject(msgspec.Struct, frozen=True):
    """An object as a listing tells it."""

    path: str
    bytes: int
    modified_us: int


DIGEST_ATTRIBUTE: Final = "tollkeeper-sha256"
"""The object's user metadata that keeps the digest of its records (on S3: `x-amz-meta-tollkeeper-sha256`)."""
DIGEST_ATTRIBUTE_AZURE: Final = "tollkeeper_sha256"
"""Azure takes only names that are identifiers."""
MULTIPART_BYTES_MIN: Final = 16 * 2**20
"""Larger objects are uploaded in parts of PART_BYTES, a few at once: a broken connection costs a part. They appear
whole or not at all, but cannot be conditional, so they are only asked for first: see above."""
PART_BYTES: Final = 8 * 2**20
PARTS_AT_ONCE: Final = 4
CONNECT_TIMEOUT_S: Final = 5.0
PING_TIMEOUT_S: Final = 3.0
"""Readiness has less patience than an upload."""
PING_PREFIX: Final = ".ping"
"""Lists nothing: an empty page costs a store least and still needs bucket and credentials."""
LIST_CHUNK: Final = 1000
REASON_MAX: Final = 200
SETTING: Final = "logs.url (LOG_STORE_URL)"
AMBIENT_CREDENTIALS: Final = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
)
"""Any of these stands for credentials that the environment hands out: a pod's, a task's or an instance's role."""

GCS_CONFIG: Final = (
    *("google_service_account", "google_service_account_path", "google_service_account_key"),
    *("google_application_credentials", "google_base_url", "google_bearer_token", "google_skip_signature"),
)
AZURE_CONFIG: Final = (
    *("azure_storage_account_name", "azure_storage_account_key", "azure_storage_sas_key", "azure_storage_token"),
    *("azure_storage_client_id", "azure_storage_client_secret", "azure_storage_tenant_id", "azure_client_id"),
    *("azure_tenant_id", "azure_client_secret", "azure_federated_token_file", "azure_storage_use_emulator"),
    *("azure_endpoint", "azure_storage_endpoint", "azure_msi_endpoint", "azure_identity_endpoint"),
)
"""Variables that obstore knows, in lower case."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_S3_ERROR: Final = re.compile(r"<Code>([^<]*)</Code>\s*(?:<Message>([^<]*)</Message>)?")
_STATUS: Final = re.compile(r"status code: (\d{3}[^:\n]*)")


class LogStore(ABC):
    """Where objects are kept. Paths are relative to the URL it was opened with; `url` is fit to be shown."""

    def __init__(self, url: str, store: LocalStore | Cloud, timeout_s: float) -> None:
        self.url = url
        self._store = store
        self._timeout_s = timeout_s
        self._calls = BlockingCalls()

    @property
    def reads_max(self) -> int:
        """Objects to read at once; a thread that has just answered still counts for a moment."""
        return self._calls.calls_max // 2

    def allow_calls(self, calls_max: int) -> None:
        """For who reads many objects, before the first call: bound calls in flight by this."""
        self._calls = BlockingCalls(calls_max)

    @abstractmethod
    async def create(self, path: str, body: bytes, sha256: str) -> bool:
        """Write a new object whole. False if there is one of that name, which stays as it is.

        When True is returned the object is durable. Raises `LogStoreUnavailable`: it may or may not be there.
        """

    @abstractmethod
    async def digest(self, path: str) -> str | None:
        """The `sha256` an object was created with, None if the store does not keep it.

        Raises `LogStoreUnavailable`, also if there is no such object.
        """

    async def holds(self, path: str) -> bool:
        """Whether there is an object of that name. Raises `LogStoreUnavailable`."""

        def ask() -> bool:
            try:
                obstore.head(self._store, path)
            except FileNotFoundError:
                return False
            return True

        return await self._run("head", ask)

    async def delete(self, path: str) -> None:
        """Remove an object; nothing happens if it is not there. Raises `LogStoreUnavailable`."""

        def work() -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, path)

        await self._run("delete", work)

    @abstractmethod
    async def ping(self) -> None:
        """Raises `LogStoreUnavailable` unless the store could take an object now."""

    async def read(self, path: str) -> bytes:
        """The whole object. Raises `LogStoreUnavailable`, also if it is not there."""
        return await self._run("read", lambda: bytes(obstore.get(self._store, path).bytes()))

    async def list(self) -> AsyncIterator[str]:
        """The paths of all objects. Raises `LogStoreUnavailable`."""
        async for item in self.listing():
            yield item.path

    async def listing(self, folder: str | None = None) -> AsyncIterator[StoredObject]:
        """All objects, or those below a folder. Raises `LogStoreUnavailable`."""
        pages = iter(obstore.list(self._store, prefix=folder, chunk_size=LIST_CHUNK))
        while (page := await self._run("list", lambda: next(pages, None))) is not None:
            for meta in page:
                yield StoredObject(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1_000_000))

    async def folders(self) -> Sequence[str]:
        """The names of the outermost folders. Raises `LogStoreUnavailable`."""
        found = await self._run("list", lambda: obstore.list_with_delimiter(self._store)["common_prefixes"])
        return [str(name).rstrip("/") for name in found]

    def local_path(self, path: str) -> Path | None:
        """Where the object is in this machine's file system, if it is there at all."""
        return None

    async def _run(self, what: str, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """Blocking work in a thread, with a deadline, its errors translated."""
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        with _translated(f"{self.url}: {what}", timeout_s):
            return await self._calls.run(work, timeout_s)


class FolderStore(LogStore):
    """A local folder."""

    def __init__(self, url: str, folder: Path, timeout_s: float) -> None:
        super().__init__(url, LocalStore(prefix=folder), timeout_s)
        self._folder = folder

    async def create(self, path: str, body: bytes, sha256: str) -> bool:
        return await self._run("write", lambda: self._create(path, body))

    def _create(self, path: str, body: bytes) -> bool:
        try:
            obstore.put(self._store, path, body, mode="create", use_multipart=False)
            created = True
        except AlreadyExistsError:
            created = False
        # also when it was there: whoever wrote it may have died before this
        _make_durable(self._folder, path)
        return created

    async def digest(self, path: str) -> str | None:
        return None

    def local_path(self, path: str) -> Path | None:
        return self._folder / path

    async def ping(self) -> None:
        await self._run("ping", lambda: _probe_folder(self._folder), PING_TIMEOUT_S)


class BucketStore(LogStore):
    """A bucket, or a prefix in one. Needs the permissions PutObject, GetObject and ListBucket, as S3 calls them; with
    a retention also DeleteObject."""

    def __init__(self, url: str, store: Cloud, timeout_s: float, digest_attribute: str = DIGEST_ATTRIBUTE) -> None:
        super().__init__(url, store, timeout_s)
        self._digest_attribute = digest_attribute

    async def create(self, path: str, body: bytes, sha256: str) -> bool:
        return await self._run("write", lambda: self._create(path, body, sha256))

    def _create(self, path: str, body: bytes, sha256: str) -> bool:
        attributes = {"Content-Type": _content_type(path), self._digest_attribute: sha256}
        try:
            obstore.head(self._store, path)
        except FileNotFoundError:
            pass
        else:
            return False
        if len(body) > MULTIPART_BYTES_MIN:
            obstore.put(
                self._store,
                path,
                body,
                attributes=attributes,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
            return True
        try:
            obstore.put(self._store, path, body, attributes=attributes, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    async def digest(self, path: str) -> str | None:
        result = await self._run("head", lambda: obstore.get(self._store, path, options={"head": True}))
        return result.attributes.get(self._digest_attribute)

    async def ping(self) -> None:
        await self._run(
            "ping", lambda: next(iter(obstore.list(self._store, prefix=PING_PREFIX)), None), PING_TIMEOUT_S
        )


def open_store(url: str, timeout_s: float, environ: Mapping[str, str] | None = None) -> LogStore:
    """The store of a `file:///path` (created for its owner alone if missing), `s3://bucket/prefix`,
    `gs://bucket/prefix` or `az://container/prefix` URL.

    Opens no connection. For S3 credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, and the
    roles of pods, tasks and instances); for GCS `GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT` (paths) or
    the instance's account; for Azure `AZURE_STORAGE_ACCOUNT_NAME` with `AZURE_STORAGE_ACCOUNT_KEY`, a service
    principal or a managed identity, as its own tools read them. `timeout_s` bounds each call. Raises
    ConfigurationError.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _open_folder(url, timeout_s)
    if parts.scheme == "s3":
        return _open_bucket(url, timeout_s, os.environ if environ is None else environ)
    if parts.scheme in ("gs", "az"):
        return _open_cloud(url, timeout_s, os.environ if environ is None else environ)
    raise ConfigurationError(
        f"{SETTING}: {mask_url(url)!r} is not a file:///path, s3://bucket/prefix, gs://bucket/prefix or "
        "az://container/prefix URL"
    )


def _open_folder(url: str, timeout_s: float) -> LogStore:
    parts = urlsplit(url)
    folder = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not folder.is_absolute() or parts.query or parts.fragment:
        raise ConfigurationError(f"{SETTING}: {url!r}: write a folder as file:///absolute/path")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{SETTING}: cannot make the folder {folder}: {error.strerror}") from None
    return FolderStore(folder.as_uri(), folder, timeout_s)


def _open_bucket(url: str, timeout_s: float, environ: Mapping[str, str]) -> LogStore:
    parts = urlsplit(url)
    if not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{SETTING}: {mask_url(url)!r}: write a bucket as s3://bucket/prefix; credentials and endpoint belong in "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    config = _credentials(environ)
    config["region"] = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise ConfigurationError(f"AWS_ENDPOINT_URL: {mask_url(endpoint)!r} is not an http:// or https:// URL")
        # path style, which every S3 server understands, is obstore's default
        config["endpoint"] = endpoint.rstrip("/")
    try:
        store = S3Store(
            parts.netloc,
            prefix=unquote(parts.path).strip("/") or None,
            config=config,  # type: ignore[arg-type]
            client_options=_client_options(timeout_s, allow_http=bool(endpoint and endpoint.startswith("http://"))),
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"{SETTING}: {mask_url(url)!r}: {_reason(error)}") from None
    return BucketStore(mask_url(url), store, timeout_s)


def _open_cloud(url: str, timeout_s: float, environ: Mapping[str, str]) -> LogStore:
    """GCS or Azure. Their variables are read by obstore itself from `environ`'s names."""
    parts = urlsplit(url)
    if not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ConfigurationError(f"{SETTING}: {mask_url(url)!r}: write a bucket as {parts.scheme}://bucket/prefix")
    prefix = unquote(parts.path).strip("/") or None
    variables = "GOOGLE_" if parts.scheme == "gs" else "AZURE_"
    config: Any = {name.lower(): value for name, value in environ.items() if name.startswith(variables) and value}
    if parts.scheme == "az" and not config.get("azure_storage_account_name"):
        raise ConfigurationError(f"{SETTING} is an Azure container, but AZURE_STORAGE_ACCOUNT_NAME is not set")
    plain = any(str(value).startswith("http://") for value in config.values())
    options = _client_options(timeout_s, allow_http=plain)
    try:
        if parts.scheme == "gs":
            known: Any = {name: config[name] for name in GCS_CONFIG if name in config}
            store = GCSStore(
                parts.netloc, prefix=prefix, config=known, client_options=options, retry_config={"max_retries": 0}
            )
            return BucketStore(mask_url(url), store, timeout_s)
        known = {name: config[name] for name in AZURE_CONFIG if name in config}
        azure = AzureStore(
            parts.netloc, prefix=prefix, config=known, client_options=options, retry_config={"max_retries": 0}
        )
        return BucketStore(mask_url(url), azure, timeout_s, DIGEST_ATTRIBUTE_AZURE)
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"{SETTING}: {mask_url(url)!r}: {_reason(error)}") from None


def _client_options(timeout_s: float, *, allow_http: bool) -> Any:
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout_s)),
        "timeout": timedelta(seconds=timeout_s),
    }


def _content_type(path: str) -> str:
    if path.endswith(".json"):
        return "application/json"
    return "application/vnd.apache.parquet" if path.endswith(".parquet") else "application/gzip"


def _credentials(environ: Mapping[str, str]) -> dict[str, Any]:
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        token = environ.get("AWS_SESSION_TOKEN")
        return {"access_key_id": key, "secret_access_key": secret} | ({"session_token": token} if token else {})
    if key or secret:
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise ConfigurationError(f"{SETTING} is a bucket, but {missing} is not set; the two belong together")
    if any(environ.get(name) for name in AMBIENT_CREDENTIALS):
        return {}
    raise ConfigurationError(
        f"{SETTING} is a bucket, but there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
        "AWS_ENDPOINT_URL for a server that is not Amazon's); to use an EC2 instance's role set "
        "AWS_METADATA_ENDPOINT=http://169.254.169.254"
    )


def _make_durable(folder: Path, path: str) -> None:
    """Flush a new file and every folder on its way, so that a delivered record survives a power cut."""
    place = folder / path
    while True:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place == folder:
            return
        place = place.parent


def _probe_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is gone")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")


@contextmanager
def _translated(what: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LogStoreUnavailable(f"{what}: {str(error) or f'no answer within {timeout_s:g} s'}") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise LogStoreUnavailable(
            f"{what}: refused ({_reason(error)}); check the credentials and that they allow PutObject, GetObject and "
            "ListBucket"
        ) from None
    except (BaseError, OSError, ValueError, NotImplementedError) as error:
        raise LogStoreUnavailable(f"{what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The store's own code and message if it gave them, else the first line of the error."""
    text = str(error)
    if found := _S3_ERROR.search(text):
        text = ": ".join(part for part in found.groups() if part)
    elif found := _STATUS.search(text):
        text = found[1]
    return text.strip().partition("\n")[0][:REASON_MAX] or type(error).__name__
