"""What an answer leaves at the provider, as it says itself: its id, and the ids of its parts."""

import msgspec

from tollkeeper.gateway.dialects.base import ABSENT


class Produced(msgspec.Struct, frozen=True):
    """An object that a provider has made or changed. `seen` is its JSON."""

    id: str
    items: tuple[str, ...] = ()
    seen: bytes = b""


class _Item(msgspec.Struct):
    id: str | None = None


class _Object(msgspec.Struct):
    id: str | None = None
    output: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(_Object).decode
_decode_items = msgspec.json.Decoder(list[_Item]).decode


def produced_by(body: bytes) -> Produced | None:
    """The object in a whole answer; None if it has no id. Never raises."""
    try:
        read = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if not read.id else Produced(read.id, item_ids(read.output), body)


def item_ids(output: msgspec.Raw) -> tuple[str, ...]:
    """The ids of an answer's items. Never raises."""
    try:
        return tuple(item.id for item in _decode_items(output) if item.id) if len(output) else ()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
