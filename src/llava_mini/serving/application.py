# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The guard around transformers' application: who may ask, what is served, how much is read, how errors look."""

import asyncio
import contextlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from transformers.utils import logging

from llava_mini.serving.chat import ChatCompletions
from llava_mini.serving.exchange import (
    ClientGone,
    HeldBytes,
    Holding,
    Incoming,
    Outgoing,
    RefusedRequest,
    Send,
    error_body,
    read_headers,
    send_json,
)
from llava_mini.serving.settings import HELD_BODIES, MEBIBYTE, Settings, split_names


logger = logging.get_logger(__name__)

# A name or an address in brackets, and a port.
HOST_PATTERN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")
CHAT, MODELS, HEALTH = "/v1/chat/completions", "/v1/models", "/health"
# After a refusal the rest of the body is read and thrown away for so long: a client that is still sending would else
# find a broken connection instead of the reason.
DRAIN_SECONDS = 10


class GuardedApplication:
    """
    An ASGI application: checks a request and answers it, or hands it to transformers' application (/health).

    Args:
        application: transformers' own.
        chat (`ChatCompletions`): answers /v1/chat/completions.
        settings (`Settings`).
        host (`str`): the address that the server listens on.
        any_origin (`bool`): pages of any site may ask (`--enable-cors`).
    """

    def __init__(
        self, application: Callable, chat: ChatCompletions, settings: Settings, host: str, any_origin: bool = False
    ):
        self.application, self.chat, self.settings, self.any_origin = application, chat, settings, any_origin
        self.allowed_hosts = split_names(settings.allowed_hosts)
        self.accepts_loopback = is_loopback(host)
        self.account = HeldBytes(HELD_BODIES * settings.max_body_bytes)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Send):
        """ASGI's entry point."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        incoming, outgoing = Incoming(receive), Outgoing(send)
        try:
            await self.answer(scope, receive, incoming, outgoing)
        except RefusedRequest as refusal:
            await self.send_error(refusal.status, refusal.body, refusal.headers, incoming, outgoing)
        except ClientGone:
            pass
        except Exception:
            logger.exception("The server failed on a request.")
            body = error_body("The server failed; its log says why.", "server_error")
            await self.send_error(500, body, {}, incoming, outgoing)

    async def answer(self, scope: dict[str, Any], receive: Callable, incoming: Incoming, outgoing: Outgoing):
        """One request to /health, /v1/models or /v1/chat/completions, after the checks that need no body."""
        headers = read_headers(scope)
        self.check_host_and_origin(headers)
        path = scope["path"]
        allowed = {HEALTH: ("GET", "HEAD"), CHAT: ("POST",)}.get(path, ("GET",) if _is_model_path(path) else ())
        if path != HEALTH:
            self.check_key(headers)
        if not allowed:
            raise RefusedRequest(f"{path[:80]} is not served. There are {CHAT}, {MODELS} and {HEALTH}.", status=404)
        if scope["method"] not in allowed:
            raise RefusedRequest(
                f"{path} takes {' or '.join(allowed)}, not {scope['method'][:20]}.",
                status=405,
                headers={"Allow": ", ".join(allowed)},
            )
        if path == HEALTH:
            await self.application(scope, receive, outgoing)
        elif path == CHAT:
            with Holding(self.account) as holding:
                body = await self.read_body(headers, incoming, holding)
                await run_while_connected(self.chat.answer(body, holding, outgoing), incoming)
        else:
            await send_json(outgoing, 200, self.describe_models(path))

    def check_host_and_origin(self, headers: dict[str, str]):
        """
        Refuses names that are not the server's: a page of a foreign site whose name was made to lead here, or that asks
        from a browser on this machine.
        """
        if not (self.accepts_loopback or self.allowed_hosts):
            return
        host, origin = headers.get("host", ""), headers.get("origin")
        match = HOST_PATTERN.fullmatch(host)
        if not (match and self.is_own_name(match[1])):
            raise RefusedRequest(
                f"The Host header is {host[:80]!r}, which is no name of this server. Ask it as localhost, or start it "
                "with --allowed-hosts.",
                status=403,
                code="host_not_allowed",
            )
        if origin is not None and not self.any_origin and not self.is_own_name(_origin_host(origin)):
            raise RefusedRequest(
                f"Pages of {origin[:80]!r} may not ask this server. Start it with --allowed-hosts or --enable-cors.",
                status=403,
                code="origin_not_allowed",
            )

    def is_own_name(self, name: str) -> bool:
        """Whether clients may call the server by this name or address."""
        name = name.lower().rstrip(".")
        return name in self.allowed_hosts or (self.accepts_loopback and is_loopback(name))

    def check_key(self, headers: dict[str, str]):
        """Refuses requests without the key, in a time that tells nothing about it."""
        if self.settings.api_key is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Headers are bytes, read as Latin-1.
        given, expected = key.strip().encode("latin-1"), self.settings.api_key.strip().encode()
        if not hmac.compare_digest(given, expected) or scheme.lower() != "bearer":
            raise RefusedRequest(
                "The request has no key, or a wrong one. Send `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def read_body(self, headers: dict[str, str], incoming: Incoming, holding: Holding) -> bytes:
        """
        The whole body, counted while it comes.

        Raises:
            RefusedRequest: it is too large, comes too slowly, or is no JSON by its header.
            ClientGone.
        """
        content_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if content_type != "application/json" or headers.get("content-encoding", "identity") != "identity":
            message = f"The body is {content_type[:80]!r}, expected application/json, not compressed. Set Content-Type."
            raise RefusedRequest(message, status=415)
        limit = self.settings.max_body_bytes
        too_large = RefusedRequest(
            f"The body has more than {limit / MEBIBYTE:g} MiB (--max-body-mib). Send smaller images or fewer.",
            status=413,
            code="body_too_large",
        )
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large

        body = bytearray()

        async def read():
            while not incoming.is_complete:
                chunk = await incoming.chunk()
                if len(body) + len(chunk) > limit:
                    raise too_large
                holding.add(len(chunk))
                body.extend(chunk)

        try:
            await asyncio.wait_for(read(), self.settings.body_timeout)
        except asyncio.TimeoutError as error:
            message = f"The body did not come within {self.settings.body_timeout:g} s (--body-timeout)."
            raise RefusedRequest(message, status=408) from error
        return bytes(body)

    def describe_models(self, path: str) -> dict[str, Any]:
        """The list of the one model there is, or that model."""
        model = {"id": self.chat.model_name, "object": "model", "created": self.chat.created, "owned_by": "llava-mini"}
        if path == MODELS:
            return {"object": "list", "data": [model]}
        name = path.removeprefix(MODELS + "/")
        if name != self.chat.model_name:
            raise RefusedRequest(
                f"There is no model {name[:80]!r}; this server has {self.chat.model_name!r}.",
                "model",
                status=404,
                code="model_not_found",
            )
        return model

    async def send_error(self, status: int, body: dict, headers: dict, incoming: Incoming, outgoing: Outgoing):
        """Sends an error unless the response has begun, and reads on for a while so that the client gets it."""
        if outgoing.has_begun:
            return
        if incoming.is_complete:
            await send_json(outgoing, status, body, headers)
            return
        await send_json(outgoing, status, body, {**headers, "Connection": "close"}, more_body=True)
        with contextlib.suppress(asyncio.TimeoutError, ClientGone):
            await asyncio.wait_for(incoming.drain(), DRAIN_SECONDS)
        await outgoing({"type": "http.response.body", "body": b""})


async def run_while_connected(work: Coroutine, incoming: Incoming):
    """
    Awaits `work`, and cancels it as soon as the client closes the connection.

    Raises:
        ClientGone: it did. Otherwise what `work` raises.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(incoming.wait_until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def is_loopback(name: str) -> bool:
    """Whether a host name or address means this machine and nothing else."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _origin_host(origin: str) -> str:
    try:
        # "null", the origin of sandboxed pages and files, has none.
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _is_model_path(path: str) -> bool:
    return path == MODELS or path.startswith(MODELS + "/")
