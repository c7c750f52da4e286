"""Pages of metrics in Prometheus' text format, of several processes, as one page. Plain text in, plain text out.

Only for pages that our own `Metrics` wrote: a family's HELP and TYPE lines before its samples, no comments.
"""

from collections.abc import Iterable
from typing import Final

_HELP: Final = b"# HELP "


def labelled(page: bytes, label: str, value: str) -> bytes:
    """The page with one more label on every sample. `value` must need no escaping."""
    put = f'{label}="{value}"'.encode()
    return b"\n".join(_with_label(line, put) for line in page.split(b"\n"))


def _with_label(line: bytes, put: bytes) -> bytes:
    if not line or line.startswith(b"#"):
        return line
    name, brace, rest = line.partition(b"{")
    if brace:
        return b"%b{%b,%b" % (name, put, rest)
    name, space, rest = line.partition(b" ")
    return b"%b{%b}%b%b" % (name, put, space, rest)


def merged(pages: Iterable[bytes]) -> bytes:
    """One page: each family once, with the samples of all pages. Where its text differs, the first one's stays."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for page in pages:
        name = b""
        is_new = False
        for line in page.split(b"\n"):
            if line.startswith(_HELP):
                name = line[len(_HELP) :].partition(b" ")[0]
                is_new = name not in heads
            if line.startswith(b"#"):
                if is_new:
                    heads.setdefault(name, []).append(line)
            elif line:
                samples.setdefault(name, []).append(line)
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return b"\n".join([*lines, b""])
