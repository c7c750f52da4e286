"""What an examination of a running deployment finds."""

from typing import Literal

import msgspec

State = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """One examined part. `remedy` says what to do; empty when all is well."""

    part: str
    state: State
    text: str
    remedy: str = ""
