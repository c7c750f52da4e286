"""Sealing a short text under a key that is not stored beside it: encrypt, then authenticate, with HMAC-SHA256 alone.

The key stream is HMAC over nonce and counter, the tag is HMAC over nonce and ciphertext, each under a key of its own
derived from the given one. It is for answers that hold a secret and must be given again for a day (idempotency keys);
no library for ciphers is among the gateway's dependencies. The nonce must be new for every text: 16 random bytes.
"""

import hmac
from typing import Final

NONCE_BYTES: Final = 16
TAG_BYTES: Final = 32


def seal(key: bytes, nonce: bytes, text: bytes) -> bytes:
    """Nonce, ciphertext and tag."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    body = nonce + _xored(key, nonce, text)
    return body + hmac.digest(_derived(key, b"authenticate"), body, "sha256")


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """The text. None: it was sealed under another key, or is not whole."""
    body, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
    if len(body) < NONCE_BYTES:
        return None
    if not hmac.compare_digest(hmac.digest(_derived(key, b"authenticate"), body, "sha256"), tag):
        return None
    return _xored(key, body[:NONCE_BYTES], body[NONCE_BYTES:])


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"tollkeeper sealing: " + purpose, "sha256")


def _xored(key: bytes, nonce: bytes, text: bytes) -> bytes:
    encrypting = _derived(key, b"encrypt")
    blocks = range(-(-len(text) // 32))
    stream = b"".join(hmac.digest(encrypting, nonce + block.to_bytes(8), "sha256") for block in blocks)
    return (int.from_bytes(text) ^ int.from_bytes(stream[: len(text)])).to_bytes(len(text))
