"""Lists in pages, as Stripe's API has them: newest first, `limit` items after the one named `starting_after`."""

from typing import Final, Generic, TypeVar

import msgspec

from tollkeeper.domain.errors import InvalidInput

PAGE_DEFAULT: Final = 20
PAGE_MAX: Final = 100

Item = TypeVar("Item")


class Paging(msgspec.Struct, frozen=True):
    """Which page. Raises InvalidInput for a size that no page has."""

    limit: int = PAGE_DEFAULT
    starting_after: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= PAGE_MAX:
            raise InvalidInput(f"limit: must be from 1 to {PAGE_MAX}")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Some items; `has_more`: there are others behind them."""

    items: list[Item]
    has_more: bool

    @classmethod
    def of(cls, found: list[Item], limit: int) -> "Page[Item]":
        """The page of what was found when one more than `limit` was asked for."""
        return cls(found[:limit], len(found) > limit)
