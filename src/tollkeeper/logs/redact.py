"""What must not leave the process in a log record is taken out here: by pattern, by a callable of the operator's, and
secrets always.

Patterns run on RE2, whose time is linear in the text whatever the pattern; what RE2 does not know (look-around,
references back) is refused at start. JSON is redacted value by value, so that a pattern sees texts as they were
meant, and what is left is still JSON.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import re2

from tollkeeper.domain.bodies import SLACK_BYTES, Body
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import LogSettings

REDACTED: Final = "[redacted]"
SECRET_CHARS_MIN: Final = 8
"""A shorter secret of the configuration is not looked for: it would be found in ordinary text."""
LABELS_KEPT: Final = 4096
"""Labels and other short texts, like the names in JSON, that were looked through before."""
LABEL_CHARS_MAX: Final = 64
DEPTH_MAX: Final = 200
"""Of nested JSON; what is deeper is left out."""
SECRET_NAMES: Final = frozenset(("authorization", "proxy-authorization", "x-api-key", "api-key", "api_key", "apikey"))
"""Texts under these names are taken for secrets, whatever they look like."""
SECRETS: Final = (
    r"tk_[A-Za-z0-9_-]{20,}",  # Tollkeeper; shorter than a key, for one may be cut
    r"\bsk-[A-Za-z0-9_-]{16,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek
    r"\b(?:gsk_|xai-|hf_|pplx-|r8_|csk-|nvapi-)[A-Za-z0-9_-]{20,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    r"(?i:\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{16,})",
    r"(?i:\b(?:authorization|x-api-key)[\"'\\]*\s*[:=]\s*[\"'\\]*(?:(?:bearer|basic)\s+)?[^\s\"'\\,;]+)",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.)*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
)

Redact = Callable[[str, str], str | None]
"""Field of the record and its text → the text to keep, or None for nothing of it."""

_ESCAPE: Final = re.compile(r"\\(?:u00([2-7][0-9a-fA-F])|(.))", re.DOTALL)


class Redactor:
    """The redaction that the settings ask for. `secrets` are texts that are taken out wherever they stand.

    Raises ConfigurationError for a pattern that RE2 does not take and a callable that cannot be had.
    """

    def __init__(self, settings: LogSettings, secrets: Sequence[str] = ()) -> None:
        self._secrets = tuple(sorted({s for s in secrets if len(s) >= SECRET_CHARS_MIN}, key=len, reverse=True))
        options = re2.Options()
        options.log_errors = False
        self._patterns = [re2.compile("|".join(f"(?:{pattern})" for pattern in SECRETS), options)]
        for index, pattern in enumerate(settings.redact):
            self._patterns.append(_compiled(pattern, f"logs.redact[{index}]", options))
        self.callable: Redact | None = None
        if settings.redact_with is not None:
            self.callable = _imported(settings.redact_with)
        self.label = lru_cache(LABELS_KEPT)(self.text)

    def text(self, text: str) -> str:
        """The text without secrets and what the patterns match. In time linear in its length."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        for pattern in self._patterns:
            if pattern.search(text) is not None:
                text = pattern.sub(REDACTED, text)
        return text

    def called(self, field: str, text: str) -> str | None:
        """What the callable makes of a text; the text if there is none. Raises what it raises, and TypeError."""
        if self.callable is None:
            return text
        kept = self.callable(field, text)
        if kept is not None and not isinstance(kept, str):
            raise TypeError(f"logs.redact_with gave a {type(kept).__name__}, not a str or None")
        return kept

    def body(self, field: str, body: Body, bytes_max: int) -> tuple[str | None, bool]:
        """A body as the record has it, and whether it was cut. Raises as `called`."""
        if isinstance(body.value, bytes):
            text = self.text(_unescaped(body.value.decode("utf-8", "replace")))
        else:
            text = msgspec.json.encode(self._tree(body.value, 0)).decode()
        kept = self.called(field, text)
        if kept is None:
            return None, body.cut
        # what the callable gives may hold what JSON cannot carry
        encoded = kept.encode("utf-8", "replace")
        if body.cut and isinstance(body.value, bytes):
            # the end of what was kept may be the beginning of a secret that no pattern knows
            bytes_max = min(bytes_max, max(0, len(encoded) - SLACK_BYTES))
        if len(encoded) <= bytes_max:
            return encoded.decode(), body.cut
        return encoded[:bytes_max].decode("utf-8", "ignore"), True

    def _leaf(self, text: str) -> str:
        return self.label(text) if len(text) <= LABEL_CHARS_MAX else self.text(text)

    def _tree(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._leaf(value)
        if depth > DEPTH_MAX:
            return REDACTED
        if isinstance(value, dict):
            return {
                self._leaf(name): REDACTED
                if isinstance(item, str) and name.lower() in SECRET_NAMES
                else self._tree(item, depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [self._tree(item, depth + 1) for item in value]
        if isinstance(value, bool) or value is None:
            return value
        text = str(value)  # a number may be a card's, or a telephone's
        return value if self.text(text) == text else REDACTED


def _compiled(pattern: str, where: str, options: Any) -> Any:
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigurationError(
            f"{where}: {pattern!r} is not a pattern that RE2 takes ({reason}); it has no look-around and no "
            "references back, so that its time stays linear"
        ) from None
    if compiled.search("") is not None:
        raise ConfigurationError(
            f"{where}: {pattern!r} matches nothing at all, and so everywhere; make it match a text"
        )
    return compiled


def _imported(name: str) -> Redact:
    where = f"logs.redact_with: {name!r}"
    module_name, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise ConfigurationError(f'{where}: write it like "my_module:my_function"')
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises, the setting cannot work
        raise ConfigurationError(f"{where}: cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise ConfigurationError(f"{where}: must be a plain function of (field, text) that gives a text or None")
    redact: Redact = found
    return redact


def _unescaped(text: str) -> str:
    """JSON that was cut, with the escapes of plain ASCII characters undone, so that patterns see them."""
    if "\\" not in text:
        return text

    def plain(match: re.Match[str]) -> str:
        if match[1] is not None:
            character = chr(int(match[1], 16))
            return match[0] if character in '"\\\x7f' else character
        return "/" if match[2] == "/" else match[0]

    return _ESCAPE.sub(plain, text)
