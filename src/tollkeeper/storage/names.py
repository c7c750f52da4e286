"""Ids and names of accounts: how ids are made, and which names can be taken. Pure but for the random bytes."""

import base64
import secrets
import unicodedata
from typing import Final

from tollkeeper.domain.accounts import NAME_MAX
from tollkeeper.domain.errors import InvalidInput

ORGANISATION: Final = "org_"
TEAM: Final = "team_"
KEY: Final = "key_"
ID_BYTES: Final = 10
"""80 random bits: 16 letters and digits, without padding."""


def new_id(prefix: str) -> str:
    """`key_` + 16 of a–z and 2–7: no colon, no brace, nothing that needs escaping anywhere."""
    return prefix + base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()


def validate_name(name: str, *, what: str) -> None:
    """Raises InvalidInput for a name that is empty, too long, blank at an end or holds control characters."""
    if not name or name != name.strip():
        raise InvalidInput(f"{what}: a name must not be empty or begin or end with a blank")
    if len(name) > NAME_MAX:
        raise InvalidInput(f"{what}: the name has {len(name)} characters; at most {NAME_MAX} are allowed")
    if not is_text(name):
        raise InvalidInput(f"{what}: control characters are not allowed in a name")


def is_text(name: str) -> bool:
    """Whether every character can be stored and shown on one line: no controls, line breaks or lone surrogates."""
    return all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in name)
