"""A FastAPI dependency that limits requests.

    @app.get("/search", dependencies=[Depends(rate_limit(limiter, 100))])

The one file outside `admin` that imports FastAPI: the library's own, loaded only when a user's application asks for
`rate_limit`. The gateway does not use it.
"""

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request, Response

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.limits import LimitResult
from tollkeeper.governance.asgi_limits import client_address
from tollkeeper.governance.limit_rules import AWAY_RETRY_S, Limiter, LimitRule, WhenAway, away, refusal


def rate_limit(
    limiter: Limiter,
    limit: int,
    *,
    burst: int | None = None,
    key: Callable[[Request], str | None] | None = None,
    cost: int | Callable[[Request], int] = 1,
    when_away: WhenAway = "bounded",
    name: str = "default",
) -> Callable[[Request, Response], Awaitable[LimitResult | None]]:
    """A dependency whose value is the `LimitResult` (None: not limited); a refusal is an HTTPException.

    Arguments and headers as in RateLimitMiddleware. It is asked once a request for each place where it stands, and
    each call of `rate_limit` shares its limit with all others of the same limiter and id: put what shall be counted
    apart into the id. Raises InvalidInput.
    """
    rule = LimitRule(limiter, limit, burst=burst, when_away=when_away, name=name)

    async def limited(request: Request, response: Response) -> LimitResult | None:
        key_id = client_address(request.scope) if key is None else key(request)
        if key_id is None:
            return None
        try:
            result = await rule.ask(key_id, cost if isinstance(cost, int) else cost(request))
        except StoreUnavailable as error:
            status, detail = away()
            raise HTTPException(status, detail, {"retry-after": str(AWAY_RETRY_S)}) from error
        if result is not None:
            headers = dict(rule.headers(result))
            if not result:
                raise HTTPException(*refusal(result), headers)
            response.headers.update(headers)
        return result

    return limited
