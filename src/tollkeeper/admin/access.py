"""What a caller's role allows. Every route says which roles it is for; one that does not is refused when it is made.

The guard (asgi.py) has put the caller into the request's scope before the framework saw it.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tollkeeper.admin.caller import CALLER, Caller
from tollkeeper.domain.errors import Forbidden, InvalidInput
from tollkeeper.domain.operators import Role

KNOWN_QUERY: Final = "known_query"
"""The attribute of a route's function with the names of its query parameters."""


class Needs:
    """A dependency of a route: the caller, if it has one of these roles. Raises Forbidden, and InvalidInput for a
    query parameter that the route does not know."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    def __call__(self, request: Request) -> Caller:
        """The caller of a request."""
        caller: Caller = request.scope[CALLER]
        if caller.actor.role not in self.roles:
            wanted = " or ".join(self.roles)
            raise Forbidden(f"this needs the role {wanted}; the token {caller.actor.name!r} is {caller.actor.role}")
        _check_query(request)
        return caller


def _check_query(request: Request) -> None:
    """A filter that nobody knows would be no filter: whoever mistypes one must not get everything instead."""
    known: frozenset[str] = getattr(request.scope["endpoint"], KNOWN_QUERY, frozenset())
    for name in request.query_params:
        if name not in known:
            raise InvalidInput(f"{name}: there is no such parameter; known are {', '.join(sorted(known)) or 'none'}")


Admin = Annotated[Caller, Depends(Needs(Role.ADMIN))]
"""For changes."""
Reader = Annotated[Caller, Depends(Needs(Role.ADMIN, Role.VIEWER))]
"""For what concerns everybody."""
Anyone = Annotated[Caller, Depends(Needs(*Role))]
"""For what an owner may see of its own; the service looks after that."""


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def roles_of(route: APIRoute) -> tuple[Role, ...]:
    """The roles that a route is for. Raises RuntimeError for one that does not say, or says several things."""
    needs = [dependency.call for dependency in route.dependant.dependencies if isinstance(dependency.call, Needs)]
    if len(needs) != 1:
        raise RuntimeError(f"{route.path}: say once for which roles it is (access.py)")
    return needs[0].roles


def describe_roles(routes: Iterable[BaseRoute]) -> None:
    """Put the roles into the OpenAPI document, as `x-roles`, and what a route's query may have beside its function.

    Raises RuntimeError as `roles_of`.
    """
    for route in routes:
        if not isinstance(route, APIRoute):
            raise RuntimeError(f"{route!r}: only plain routes can say for which roles they are")
        setattr(route.endpoint, KNOWN_QUERY, frozenset(_query_names(route.dependant)))
        route.openapi_extra = {"x-roles": [role.value for role in roles_of(route)]}
