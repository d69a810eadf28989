"""Where the page and the viewer listen, as words of their commands."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from gs_propeller.base.errors import UserError


def address(words: Sequence[str], port: int) -> tuple[str, int, list[str]]:
    """(host, port, the other words), by host= and port= where they are given. Raises UserError for a port that is no
    number of 0 to 65535, 0 is any free one, and for a host that is not found."""
    ours = [word for word in words if word.startswith(("host=", "port="))]
    given = dict(word.split("=", 1) for word in ours)
    asked = given.get("port", str(port))
    if not (asked.isascii() and asked.isdigit() and int(asked) < 65536):
        raise UserError(f"port={asked}: a whole number of 0 to 65535 is wanted")
    host = given.get("host", "127.0.0.1")
    try:
        socket.getaddrinfo(host, int(asked))
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={host}: there is no such address; host=127.0.0.1 is this machine") from error
    return host, int(asked), [word for word in words if word not in ours]
