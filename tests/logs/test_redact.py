"""What must not leave the process does not, in linear time, and JSON stays JSON."""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.bodies import Body
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.logs.redact import DEPTH_MAX, REDACTED, Redactor
from tollkeeper.settings import LogSettings

PROVIDER_KEY = "house-provider-key-0123456789"
TOLLKEEPER_KEY = "tk_" + "Ab-_" * 10 + "xyz"


def redactor(*patterns: str, secrets: tuple[str, ...] = (PROVIDER_KEY,), **settings: Any) -> Redactor:
    return Redactor(LogSettings(redact=patterns, **settings), secrets)


def json_of(found: tuple[str | None, bool]) -> Any:
    assert found[0] is not None
    return msgspec.json.decode(found[0])


SECRETS = {
    "a Tollkeeper key": TOLLKEEPER_KEY,
    "the provider's own key": PROVIDER_KEY,
    "OpenAI": "sk-proj-abcdefghijklmnop1234",
    "Anthropic": "sk-ant-api03-abcdefghijklmnop",
    "Google": "AIza" + "x" * 35,
    "AWS": "AKIAABCDEFGHIJKLMNOP",
    "GitHub": "ghp_" + "a" * 36,
    "Slack": "xoxb-1234567890-abc",
    "a token": "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2",
    "a header": "Authorization: Bearer short",
    "a header of another kind": "x-api-key: hunter2",
    "a bearer": "bearer abcdefghijklmnopqrstu",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_always_redacted(secret: str) -> None:
    """Without any setting: in texts, names and values of JSON, and in bodies that are no JSON."""
    plain = redactor()
    assert plain.text(f"before {secret} after") == f"before {REDACTED} after"
    value = {"a": [f"x {secret} y"], f" {secret}": 1}
    assert json_of(plain.body("request_body", Body(value), 10_000)) == {"a": [f"x {REDACTED} y"], f" {REDACTED}": 1}
    raw = b'{"broken": "' + msgspec.json.encode(f"z {secret} z")[1:-1] + b'"'
    text, _ = plain.body("request_body", Body(raw), 10_000)
    assert text == '{"broken": "z [redacted] z"'


def test_ordinary_text_is_left_alone() -> None:
    for text in (
        "ask-me",
        "task-oriented-programming-for-all",
        "basic understanding",
        "tk_short",
        "stk_exchange",
        "the bearer of news",
    ):
        assert redactor().text(text) == text


def test_texts_under_secret_names_are_secrets() -> None:
    value = {"headers": {"Authorization": "abc", "X-Api-Key": "def"}, "api_key": {"type": "string"}}
    assert json_of(redactor().body("request_body", Body(value), 1000)) == {
        "headers": {"Authorization": REDACTED, "X-Api-Key": REDACTED},
        "api_key": {"type": "string"},
    }


def test_patterns_see_texts_as_they_are_meant() -> None:
    """Values decoded, numbers too, what is cut with its escapes undone."""
    found = redactor(r"\b\d{3}-\d{2}-\d{4}\b", r"\b4\d{15}\b", r"[\w.]+@[\w.]+")
    value = {
        "ssn": "123-45-6789",
        "card": 4111111111111111,
        "n": 12,
        "mail": "ann@example.org",
        "ok": True,
        "no": None,
    }
    assert json_of(found.body("request_body", Body(value), 1000)) == {
        "ssn": REDACTED, "card": REDACTED, "n": 12, "mail": REDACTED, "ok": True, "no": None,
    }  # fmt: skip
    text, _ = found.body("request_body", Body(rb'{"mail": "\u0061nn\u0040example.org", "q": "a\"b\\u0040'), 1000)
    assert text == '{"mail": "[redacted]", "q": "a\\"b\\\\u0040'


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(?=a)b", "invalid perl operator"),
        (r"(a)\1", "invalid escape sequence"),
        ("[", "missing"),
        ("a*", "everywhere"),
        ("", "everywhere"),
    ],
)
def test_patterns_that_cannot_work_are_refused_at_start(pattern: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=r"logs\.redact\[1\]") as refused:
        redactor("fine", pattern)
    assert words in str(refused.value)


def test_a_pattern_that_explodes_elsewhere_takes_linear_time() -> None:
    """`(a+)+$` on 100,000 letters is 2^100000 steps for a backtracking engine."""
    found = redactor(r"(a+)+$")
    before = time.process_time()
    assert found.text("a" * 100_000 + "b") == "a" * 100_000 + "b"
    assert time.process_time() - before < 20  # a bound for "ever", no measurement


def test_a_body_is_cut_after_redaction() -> None:
    """A secret across the edge is gone as a whole; a character is never halved."""
    raw = b'{"a": "' + b"x" * 90 + TOLLKEEPER_KEY.encode() + b'"}'
    text, cut = redactor().body("request_body", Body(raw), 100)
    assert cut and text is not None and "tk_" not in text and len(text) <= 100
    beginning = b"x" * 60 + f"{TOLLKEEPER_KEY} ".encode() * 80 + PROVIDER_KEY.encode()[:-1]
    assert len(beginning) < 4096 + 1000  # and what is left of it is below the bound
    text, cut = redactor().body("request_body", Body(beginning, cut=True), 1000)
    assert cut and text is not None and PROVIDER_KEY[:8] not in text
    text, cut = redactor().body("request_body", Body("ü" * 100), 10)
    assert (text, cut) == ('"üüüü', True)
    assert redactor().body("request_body", Body("x"), 10) == ('"x"', False)
    assert redactor().body("request_body", Body("x", cut=True), 10) == ('"x"', True)


def test_deep_json_is_left_out_where_it_is_too_deep() -> None:
    value: Any = TOLLKEEPER_KEY
    for _ in range(DEPTH_MAX + 50):
        value = [value]
    text, _ = redactor().body("request_body", Body(value), 10_000)
    assert text is not None and REDACTED in text and "tk_" not in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)
def test_what_no_pattern_matches_is_unchanged(value: Any) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return
    assert json_of(redactor("never in here").body("request_body", Body(value), 10**6)) == value


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_redaction.py").write_text(
        "def shout(field, text):\n    return field + ':' + text.upper()\n"
        "def nothing(field, text):\n    return None\n"
        "def wrong(field, text):\n    return 1\n"
        "async def later(field, text):\n    return text\n"
        "number = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_redaction", raising=False)


@pytest.mark.usefixtures("own_module")
def test_a_callable_sees_what_the_patterns_left() -> None:
    found = redactor("secret", redact_with="own_redaction:shout")
    assert found.body("request_body", Body("a secret"), 100) == ('request_body:"A [REDACTED]"', False)
    assert redactor(redact_with="own_redaction:nothing").body("request_body", Body("a"), 100) == (None, False)
    with pytest.raises(TypeError, match="int"):
        redactor(redact_with="own_redaction:wrong").body("request_body", Body("a"), 100)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("name", ["own_redaction", "own_redaction:", "nowhere:f", "own_redaction:gone",
                                  "own_redaction:number", "own_redaction:later"])  # fmt: skip
def test_a_callable_that_cannot_be_had_is_refused_at_start(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"logs\.redact_with"):
        redactor(redact_with=name)
