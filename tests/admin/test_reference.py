"""The reference has every route of the API, with its roles."""

from tools import reference_pages
from tools.write_reference import started


def test_the_page_of_the_http_api_is_up_to_date() -> None:
    """docs/reference/api.md has what a started gateway describes; `make docs` writes it."""
    assert reference_pages.API.read_text() == reference_pages.api_page(started()[1])
