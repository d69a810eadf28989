"""A server of this process's own for tests, and a client of it in the standard library alone."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError

import uvicorn

from gs_propeller.studio.queue import Queue
from gs_propeller.studio.server import Limits, build


@contextmanager
def serving(queue: Queue, limits: Limits | None = None) -> Iterator[str]:
    """Its address, while it listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build(queue, limits or Limits()), log_level="warning", timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive()


def form(fields: dict[str, Any]) -> tuple[bytes, str]:
    """(body, content type); bytes are files."""
    parts = []
    for name, value in fields.items():
        file = isinstance(value, bytes)
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"' + (
            '; filename="a.png"' if file else ""
        )
        parts.append(head.encode() + b"\r\n\r\n" + (value if file else str(value).encode()) + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def asked(
    url: str, fields: dict[str, Any] | None = None, method: str = "", **headers: str
) -> tuple[int, Any]:
    """(status code, the answer: parsed where it is JSON, else bytes)."""
    body, kind = form(fields) if fields is not None else (None, "")
    request = urllib.request.Request(url, body, headers, method=method or None)
    if kind:
        request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            code, said, kind = answer.status, answer.read(), answer.headers.get_content_type()
    except HTTPError as error:
        code, said, kind = error.code, error.read(), error.headers.get_content_type()
    return code, json.loads(said) if kind == "application/json" else said
