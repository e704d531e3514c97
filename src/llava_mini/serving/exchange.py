# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""A request and its response: ASGI's messages, what they hold in memory, how a request is refused."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llava_mini.serving.settings import MEBIBYTE


Send = Callable[[dict[str, Any]], Awaitable[None]]


class ClientGone(Exception):
    """The connection was closed."""


class Incoming:
    """A request's messages from the client, and whether its body has come whole."""

    def __init__(self, receive: Callable[[], Awaitable[dict[str, Any]]]):
        self.receive, self.is_complete = receive, False

    async def chunk(self) -> bytes:
        """
        The next part of the body.

        Raises:
            ClientGone.
        """
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.is_complete = True
            raise ClientGone
        self.is_complete = not message.get("more_body", False)
        return message.get("body", b"")

    async def drain(self):
        """Throws away what is left of the body."""
        while not self.is_complete:
            await self.chunk()

    async def wait_until_gone(self):
        """Returns when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Outgoing:
    """A request's messages to the client, and whether the response has begun."""

    def __init__(self, send: Send):
        self.send_message, self.has_begun = send, False

    async def __call__(self, message: dict[str, Any]):
        self.has_begun = True
        await self.send_message(message)


class RefusedRequest(Exception):
    """
    A request that is not answered, as the client is told.

    Args:
        message (`str`): what came, what was expected, what to do.
        param (`str`, *optional*): the part of the body that is meant, as in `messages[0].role`.
        status (`int`): HTTP's, a 4xx.
        code (`str`, *optional*): OpenAI's short name of the error.
        headers (`dict[str, str]`, *optional*): of the response.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = error_body(message, "invalid_request_error", param, code)


def error_body(message: str, error_type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


class HeldBytes:
    """
    Counts what all open requests hold in memory, so that many at once can't fill it.

    Args:
        limit (`int`): bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0

    def add(self, count: int):
        """
        Counts bytes that were received.

        Raises:
            RefusedRequest: all requests together hold too much.
        """
        if self.held + count > self.limit:
            raise RefusedRequest(
                f"The open requests hold {self.limit / MEBIBYTE:g} MiB, the most that this server keeps. Try again.",
                status=429,
                code="server_busy",
                headers={"Retry-After": "5"},
            )
        self.held += count

    def remove(self, count: int):
        """Gives bytes back."""
        self.held -= count


class Holding:
    """One request's share of `HeldBytes`, given back at the end of a `with` block."""

    def __init__(self, account: HeldBytes):
        self.account, self.count = account, 0

    def add(self, count: int):
        """As `HeldBytes.add`."""
        self.account.add(count)
        self.count += count

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *_):
        self.account.remove(self.count)


async def send_json(send: Send, status: int, body: dict, headers: dict | None = None, more_body: bool = False):
    """A whole response of JSON; `more_body` leaves it to the caller to end it."""
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content, "more_body": more_body})


def read_headers(scope: dict[str, Any]) -> dict[str, str]:
    """
    The headers by lower-case name.

    Raises:
        RefusedRequest: one of those that decide who may ask comes twice, so that others may read another one than we.
    """
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        name = name.decode("latin-1").lower()
        if name in headers and name in ("host", "origin", "authorization", "content-type", "content-length"):
            raise RefusedRequest(f"The header {name} comes twice. Send it once.")
        headers[name] = value.decode("latin-1")
    return headers
