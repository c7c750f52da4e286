"""What systemd hands over and is told: a listening socket (sd_listen_fds(3)), and readiness (sd_notify(3)).

Both are a few lines of protocol in the environment; without systemd nothing happens.
"""

import os
import socket
from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import ConfigurationError

FIRST_FD: Final = 3


def passed_socket() -> socket.socket | None:
    """The socket that systemd listens on for this process, or None. Raises ConfigurationError if there are several.

    The variables are for one process: they are taken out of the environment, and mean nothing to children.
    """
    owner, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if owner != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise ConfigurationError(f"systemd passes {count} sockets; a gateway has one: keep one ListenStream")
    os.set_inheritable(FIRST_FD, False)
    return socket.socket(fileno=FIRST_FD)


def notify(state: str) -> None:
    """`READY=1` or `STOPPING=1`, to whoever asked to be told (NOTIFY_SOCKET). That it fails is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        told.sendto(state.encode(), address)
