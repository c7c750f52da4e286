"""The way out to a provider: through which proxy, if any, and whose word is trusted for who it is. From its settings,
or from the environment as SDKs read it.

Proxies are asked with CONNECT, so they see a host and a port and nothing of a request, and only `https` goes through
them. This file decides; `http1_dial.py` connects.
"""

import base64
import contextlib
import ipaddress
import os
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import ProviderSettings, mask_url

PORT: Final = 80
"""Of a proxy whose URL names none, as httpx has it."""


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy. `credentials`: `user:password`, empty if it wants none."""

    host: str
    port: int
    credentials: str = ""

    def __repr__(self) -> str:
        return f"<Proxy {self.host}:{self.port}>"

    @property
    def password(self) -> str:
        """Empty without one."""
        return self.credentials.partition(":")[2]

    @property
    def authorization(self) -> str:
        """The value of `proxy-authorization`; empty without credentials."""
        return f"Basic {base64.b64encode(self.credentials.encode()).decode()}" if self.credentials else ""


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Certificates and names are checked: against that authority, else the system's or those of `SSL_CERT_FILE`."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def proxy_of(name: str, provider: ProviderSettings, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy of a provider; None: it is reached directly.

    What its settings say; else `HTTPS_PROXY`, unless `NO_PROXY` names the host; of both, lower case comes first.
    Raises ConfigurationError.
    """
    environ = os.environ if environ is None else environ
    if provider.proxy is not None:
        return _read_proxy(f"providers.{name}.proxy", provider.proxy) if provider.proxy else None
    if provider.proxy_env is not None:
        url = environ.get(provider.proxy_env, "").strip()
        if not url:
            raise ConfigurationError(
                f"providers.{name}.proxy_env: {provider.proxy_env} is not set; put the proxy's URL there"
            )
        return _read_proxy(provider.proxy_env, url)
    base = urlsplit(provider.base_url)
    variable = next((v for v in ("https_proxy", "HTTPS_PROXY") if environ.get(v, "").strip()), None)
    if base.scheme != "https" or variable is None:
        return None
    without = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if _is_named(base.hostname or "", base.port or 443, without):
        return None
    try:
        return _read_proxy(variable, environ[variable].strip())
    except ConfigurationError as error:
        raise ConfigurationError(f'{error}. To go without: NO_PROXY, or proxy = "" under providers.{name}') from None


def _is_named(host: str, port: int, names: str) -> bool:
    """Whether `NO_PROXY` names a host: itself, a domain that it is in, a network of addresses, or `*` for all. A name
    may have a port."""
    host = host.rstrip(".").lower()
    for name in names.lower().replace(",", " ").split():
        known = name.removesuffix(f":{port}").strip("[]").removeprefix("*.").strip(".")
        if name == "*" or host == known or host.endswith(f".{known}"):
            return True
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(known, strict=False):
                return True
    return False


def _read_proxy(what: str, url: str) -> Proxy:
    """A proxy's URL; `http://` may be left out. `what` names it in the ConfigurationError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigurationError(f"{what}: write it like http://proxy.internal:3128, not {mask_url(url)!r}")
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username is not None else ""
    if any(ord(letter) < ord(" ") for letter in credentials):
        raise ConfigurationError(f"{what}: its user or password has characters that no header can carry")
    return Proxy(host, port or PORT, credentials)
