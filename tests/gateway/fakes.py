"""Honest, small versions of the ports that other rooms stand behind."""

from tollkeeper.domain.accounts import digest_secret
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.domain.policy import UNLIMITED, Policy, Principal, Scope, ScopeKind
from tollkeeper.domain.ports import ActiveKey, KeyChanges
from tollkeeper.domain.record import RequestRecord

DIGEST_KEY = b"0123456789abcdef0123456789abcdef"


class MemoryDirectory:
    """A KeyDirectory with a version per change. `away` makes it fail as a database would."""

    def __init__(self) -> None:
        self.version = 0
        self.away = False
        self.polls = 0
        self._active: dict[bytes, tuple[int, Principal]] = {}
        self._gone: dict[bytes, int] = {}

    async def changes_since(self, version: int) -> KeyChanges | None:
        self.polls += 1
        if self.away:
            raise DatabaseUnavailable("the database is away")
        if version >= self.version:
            return None
        active = tuple(ActiveKey(d, p) for d, (v, p) in self._active.items() if v > version)
        return KeyChanges(self.version, active, tuple(d for d, v in self._gone.items() if v > version))

    def put(self, secret: str, principal: Principal) -> Principal:
        self.version += 1
        digest = digest_secret(DIGEST_KEY, secret.encode())
        self._gone.pop(digest, None)
        self._active[digest] = (self.version, principal)
        return principal

    def remove(self, secret: str) -> None:
        self.version += 1
        digest = digest_secret(DIGEST_KEY, secret.encode())
        del self._active[digest]
        self._gone[digest] = self.version


def principal_of(
    name: str,
    policy: Policy = UNLIMITED,
    *,
    organisation: Policy | None = None,
    expires_at_us: int | None = None,
    revoked_at_us: int | None = None,
) -> Principal:
    """A key of its own organisation, or below one with a policy."""
    scopes = [Scope(ScopeKind.KEY, f"key_{name}", policy)]
    if organisation is not None:
        scopes.append(Scope(ScopeKind.ORGANISATION, f"org_{name}", organisation))
    return Principal(
        f"key_{name}",
        name,
        f"org_{name}",
        tuple(scopes),
        expires_at_us=expires_at_us,
        revoked_at_us=revoked_at_us,
    )


class Records:
    """A RecordSink that keeps everything."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []

    def put(self, record: RequestRecord) -> None:
        self.all.append(record)
