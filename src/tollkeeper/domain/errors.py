"""The errors of the whole project. A refusal by a limit is a value, never an exception.

TollkeeperError
├── ConfigurationError      the operator's settings are wrong; refused at start
├── RequestError            the client's request cannot be served; becomes HTTP in one place
├── InvalidInput            a caller of the library or control plane gave a bad value
│   ├── MoneyError          … an amount that cannot be taken (domain/money.py)
│   ├── IdempotencyConflict … an idempotency key that stands for another amount
│   └── NotFound            … named something that does not exist
├── Forbidden               somebody's role does not allow it
├── Busy                    work of which there is one at a time is under way for somebody else
└── Unavailable             a part we depend on is away; says which
    ├── StoreUnavailable        the fast store (Redis)
    │   └── StoreDamaged            … has something else than ours under a key of one root; others are well
    ├── Recovering              the fast store lost something that another gateway has yet to send again
    ├── DatabaseUnavailable     the database
    ├── OutboxUnavailable       the local disk of the outbox
    ├── LogStoreUnavailable     the object store or folder of the logs
    └── UpstreamError           the provider; says whether the request was sent
"""

from enum import StrEnum


class TollkeeperError(Exception):
    """Root of the tree."""


class ConfigurationError(TollkeeperError):
    """Settings that cannot work. The message names the setting and what to write."""


class Fault(StrEnum):
    """Why a request was answered with an error; each has one HTTP status in the gateway's error table."""

    MALFORMED = "invalid_json"
    INVALID = "invalid_request"
    TOO_LARGE = "request_too_large"
    NO_KEY = "missing_api_key"
    BAD_KEY = "invalid_api_key"
    EXPIRED_KEY = "expired_api_key"
    REVOKED_KEY = "revoked_api_key"
    MODEL_FORBIDDEN = "model_not_allowed"
    UNKNOWN_MODEL = "model_not_found"
    UNKNOWN_ROUTE = "unknown_url"
    UNKNOWN_OBJECT = "not_found"
    ELSEWHERE = "stored_elsewhere"
    WRONG_METHOD = "method_not_allowed"
    WRONG_DIALECT = "wrong_dialect"
    UNPRICED = "model_not_priced"
    UNBOUNDED = "cost_not_bounded"
    COST_CAP = "cost_cap_exceeded"
    RATE_LIMIT = "rate_limit_exceeded"
    CONCURRENCY = "concurrency_limit_exceeded"
    BUDGET = "insufficient_quota"
    NEVER_FITS = "request_exceeds_limit"
    OVERLOADED = "overloaded"
    STORE_AWAY = "governance_unavailable"
    DEPLOYMENTS_FULL = "deployments_at_limit"
    UPSTREAM_DOWN = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BROKEN = "upstream_invalid_response"
    UPSTREAM_REFUSED_US = "upstream_authentication"
    INTERNAL = "internal_error"


class RequestError(TollkeeperError):
    """A request that is answered with an error. `param` names the field at fault, if one is."""

    def __init__(self, fault: Fault, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.param = param


class InvalidInput(TollkeeperError, ValueError):
    """A value that cannot be taken; the message says what to give instead."""


class NotFound(InvalidInput):
    """There is no such organisation, team, key or limit."""


class IdempotencyConflict(InvalidInput):
    """This idempotency key was used for another amount. Nothing was charged."""


class Forbidden(TollkeeperError):
    """Whoever asks is known and may not do this. Nothing was done."""


class Busy(TollkeeperError):
    """This is done for one caller at a time, and another one is first. Nothing was done."""


class Unavailable(TollkeeperError):
    """A dependency did not answer in time or refused. Waiting may help."""

    sent = False
    """Whether what was asked may have been done all the same."""


class StoreUnavailable(Unavailable):
    """The fast store is away; `sent` unless the command certainly did not run."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class StoreDamaged(StoreUnavailable):
    """The fast store answers, but what it has under a key of this root is not what we keep there. Waiting does not
    help; nothing was changed."""

    code = "DAMAGED"

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class Recovering(Unavailable):
    """The fast store lost something, and not every producer has sent again what it knows: budgets must wait."""


class DatabaseUnavailable(Unavailable):
    """The database is away."""


class OutboxUnavailable(Unavailable):
    """The outbox's disk is full or cannot be written: nothing may be dispatched."""


class LogStoreUnavailable(Unavailable):
    """The log store did not take, give or list an object. Whether a write happened is unknown."""


class UpstreamError(Unavailable):
    """The exchange with a provider failed.

    `sent` is False only when certainly no byte of the request reached the provider; then nothing can have been
    charged there and the hold is voided.
    """

    def __init__(self, fault: Fault, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.fault = fault
        self.sent = sent
