"""Who asks, and what its role allows. Every route says which roles it is for; one that does not is refused at start.

The guard (asgi.py) has put the caller into the request's scope before the framework saw it.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tollkeeper.domain.audit import Author
from tollkeeper.domain.errors import Forbidden
from tollkeeper.domain.operators import Actor, Role

CALLER: Final = "tollkeeper.caller"
"""Where the caller is in a request's scope."""


class Caller(msgspec.Struct, frozen=True):
    """An actor, and the request that it makes: what services are asked by, and audit events name."""

    actor: Actor
    request_id: str
    address: str
    source: str = "api"
    idempotency: bytes | None = None

    @property
    def author(self) -> Author:
        """As the audit log knows it."""
        actor = self.actor
        return Author(actor.id, actor.name, self.source, self.address, self.request_id, self.idempotency)

    @property
    def owned(self) -> tuple[str, ...] | None:
        """The ids that lists are limited to; None: to none."""
        return None if self.actor.sees_all else self.actor.owns


class Needs:
    """A dependency of a route: the caller, if it has one of these roles. Raises Forbidden."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    def __call__(self, request: Request) -> Caller:
        """The caller of a request."""
        caller: Caller = request.scope[CALLER]
        if caller.actor.role not in self.roles:
            wanted = " or ".join(self.roles)
            raise Forbidden(f"this needs the role {wanted}; the token {caller.actor.name!r} is {caller.actor.role}")
        return caller


Admin = Annotated[Caller, Depends(Needs(Role.ADMIN))]
"""For changes."""
Reader = Annotated[Caller, Depends(Needs(Role.ADMIN, Role.VIEWER))]
"""For what concerns everybody."""
Anyone = Annotated[Caller, Depends(Needs(*Role))]
"""For what an owner may see of its own; the service looks after that."""


def roles_of(route: APIRoute) -> tuple[Role, ...]:
    """The roles that a route is for. Raises RuntimeError for one that does not say, or says several things."""
    needs = [dependency.call for dependency in route.dependant.dependencies if isinstance(dependency.call, Needs)]
    if len(needs) != 1:
        raise RuntimeError(f"{route.path}: say once for which roles it is (access.py)")
    return needs[0].roles


def describe_roles(routes: Iterable[BaseRoute]) -> None:
    """Put the roles into the OpenAPI document, as `x-roles`. Raises RuntimeError as `roles_of`."""
    for route in routes:
        if not isinstance(route, APIRoute):
            raise RuntimeError(f"{route!r}: only plain routes can say for which roles they are")
        route.openapi_extra = {"x-roles": [role.value for role in roles_of(route)]}
