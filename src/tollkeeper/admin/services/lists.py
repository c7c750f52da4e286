"""A page as the API and the pages print it."""

from collections.abc import Callable
from typing import TypeVar

from tollkeeper.domain.paging import Page
from tollkeeper.domain.words import Words

Item = TypeVar("Item")


def listed(page: Page[Item], words: Callable[[Item], Words]) -> Words:
    """`data` and `has_more`, as Stripe's API has them."""
    return {"data": [words(item) for item in page.items], "has_more": page.has_more}
