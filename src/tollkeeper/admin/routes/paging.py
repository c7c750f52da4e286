"""The query parameters of every list."""

from typing import Annotated

from fastapi import Depends, Query

from tollkeeper.domain.paging import PAGE_DEFAULT, PAGE_MAX, Paging


def _paging(
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="Items of a page.")] = PAGE_DEFAULT,
    starting_after: Annotated[
        str | None, Query(description="The id of the last item of the page before: the next page.")
    ] = None,
) -> Paging:
    return Paging(limit, starting_after)


Paged = Annotated[Paging, Depends(_paging)]
