"""Numbers and times in the words of the pages. Exact values stay beside what is shown: in `<data>` and `<time>`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from markupsafe import Markup

from tollkeeper.domain.money import NANO_PER_USD, nano_from_usd, usd
from tollkeeper.domain.words import Words

MONTHS: Final = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
DIGITS_SHOWN: Final = 6
"""Decimals of an amount below a dollar; above, there are two."""


def dollars(nano: int) -> str:
    """Nano-dollars for reading: `$1,234.57`, `$0.0042`, `<$0.000001`; rounded half up."""
    sign, amount = ("-", -nano) if nano < 0 else ("", nano)
    decimals = 2 if amount >= NANO_PER_USD or amount == 0 else DIGITS_SHOWN
    unit = NANO_PER_USD // 10**decimals
    units = (amount + unit // 2) // unit
    if units == 0 and amount:
        return f"{sign}<$0.{'0' * (decimals - 1)}1"
    whole, fraction = divmod(units, 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits}"


def axis_dollars(nano: float) -> str:
    """Nano-dollars for a chart."""
    return dollars(round(nano))


def nano_from_words(text: str) -> int:
    """An amount in USD as services answer it; after corrections it may be below zero."""
    nano = nano_from_usd(text.removeprefix("-"))
    return -nano if text.startswith("-") else nano


def usd_words(text: str) -> str:
    """An amount as services answer it, for reading."""
    return dollars(nano_from_words(text))


def money(nano: int) -> Markup:
    """An amount, with the exact one in USD as its value."""
    return Markup('<data class="money" value="{}">{}</data>').format(usd(nano), dollars(nano))


def count(number: int) -> Markup:
    """A whole number with separators."""
    return Markup('<data value="{}">{:,}</data>').format(number, number)


def short(number: float) -> str:
    """A number for a chart's axis: `950`, `1.2k`, `3M`."""
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.3g}{suffix}"
    return f"{number:.3g}"


def duration(microseconds: int | float | None) -> str:
    """`820 µs`, `12 ms`, `3.4 s`; a dash for none."""
    if microseconds is None:
        return "–"
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def milliseconds(number: float | None) -> str:
    """As `duration`."""
    return duration(None if number is None else number * 1000)


def at_most(seconds: float | None) -> str:
    """A bound of a histogram."""
    return "–" if seconds is None else f"≤ {duration(seconds * 1_000_000)}"


def json_pretty(text: str) -> str:
    """JSON with its lines indented; anything else as it is."""
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


def changes(event: Words) -> list[tuple[str, str, str]]:
    """An audit event as name, before and after of each value; names of objects inside have dots. What is empty on
    both sides is left out."""
    before, after = (dict(_flat(event[side] or {}, "")) for side in ("before", "after"))
    names = [name for name in {**before, **after} if name != "id"]
    return [(name, before.get(name, ""), after.get(name, "")) for name in names]


def _flat(words: Words, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in words.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            if value:
                yield prefix + name, ", ".join(map(str, value))
        elif value not in (None, False):
            yield prefix + name, "yes" if value is True else str(value)


def wait(seconds: float | None) -> str:
    """A longer time: `42 s`, `5 min`, `3 h`, `12 days`."""
    if seconds is None:
        return "–"
    for size, word in ((172_800, "days"), (7200, "h"), (120, "min")):
        if seconds >= size:
            unit = {"days": 86_400, "h": 3600, "min": 60}[word]
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds:.0f} s"


def moment(time_us: int | None) -> Markup:
    """Unix µs as `27 Nov 2026, 11:30:05` in UTC."""
    if time_us is None:
        return Markup('<span class="muted">–</span>')
    at = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    iso = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}">{} {} {}, {}</time>').format(
        iso, at.day, MONTHS[at.month - 1], at.year, at.strftime("%H:%M:%S")
    )


def instant_moment(text: str | None) -> Markup:
    """RFC 3339, as services answer, for reading."""
    if text is None:
        return moment(None)
    return moment(int(datetime.fromisoformat(text).timestamp()) * 1_000_000)


FILTERS: Final = {
    "dollars": dollars,
    "usd_words": usd_words,
    "money": money,
    "count": count,
    "duration": duration,
    "wait": wait,
    "milliseconds": milliseconds,
    "at_most": at_most,
    "json_pretty": json_pretty,
    "changes": changes,
    "moment": moment,
    "instant": instant_moment,
}
