# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What the server allows: every limit, its option on the command line and its default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


MEBIBYTE = 2**20
# Bytes of requests, in units of the largest body, that all open requests together may hold in memory.
HELD_BODIES = 16


def _option(**options) -> typer.models.OptionInfo:
    return typer.Option(rich_help_panel="What others may do", **options)


@dataclass(frozen=True)
class Settings:
    """The server's own options, one a field; typer reads names, types, defaults and help from here."""

    max_body_mib: Annotated[float, _option(help="MiB of a request's body.")] = 32
    body_timeout: Annotated[float, _option(help="Seconds that a client may take to send its body.")] = 60
    max_images: Annotated[int, _option(min=0, help="Images and videos of a request together.")] = 16
    max_pixels: Annotated[
        int,
        # Measured: 17 bytes a pixel while one is prepared, 1.1 GB at the default, which a phone's 50 megapixels pass.
        _option(min=1, help="Pixels of a request's images together, and of a video's frame (from the headers)."),
    ] = 64_000_000
    max_video_frames: Annotated[
        int,
        # All frames have to be decoded to reach the sampled ones: 2 minutes at 30 frames a second.
        _option(min=0, help="Frames that the files of a request's videos may have together."),
    ] = 3600
    max_prompt_tokens: Annotated[
        int | None,
        _option(min=1, help="Tokens of a prompt. The model's positions less one, which is also the most."),
    ] = None
    max_new_tokens: Annotated[int, _option(min=1, help="Tokens that a request may ask for.")] = 1024
    allowed_media_domains: Annotated[
        list[str] | None,
        _option(
            help="Hosts that images and videos may be fetched from, separated by commas, or the option repeated; never "
            "at addresses that are not public. Without it only data URLs are read."
        ),
    ] = None
    allowed_local_media_path: Annotated[
        Path | None, _option(help="A folder whose files requests may name as file:// URLs or paths.")
    ] = None
    max_media_mib: Annotated[float, _option(help="MiB of a fetched image or video.")] = 32
    media_timeout: Annotated[float, _option(help="Seconds to fetch an image or video, redirects included.")] = 10
    allowed_hosts: Annotated[
        list[str] | None,
        _option(
            help="Names under which clients may reach the server (the Host and Origin headers), besides this machine's "
            "own when --host is one of them. Without it names are only checked then."
        ),
    ] = None
    api_key: Annotated[
        str | None,
        _option(envvar="LLAVA_MINI_API_KEY", help="Key that all requests but /health have to carry (Bearer)."),
    ] = None

    def __post_init__(self):
        for name in ("max_body_mib", "body_timeout", "max_media_mib", "media_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but has to be above 0.")
        folder = self.allowed_local_media_path
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--allowed-local-media-path is {str(folder)!r}, which is no folder here.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("--api-key is empty. Leave it out, or choose a key.")

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request's body."""
        return int(self.max_body_mib * MEBIBYTE)

    @property
    def max_media_bytes(self) -> int:
        """Bytes of a fetched image or video."""
        return int(self.max_media_mib * MEBIBYTE)


def split_names(names: list[str] | None) -> frozenset[str]:
    """The lower-case names of an option that may be repeated and have commas."""
    return frozenset(name.strip().lower() for value in names or () for name in value.split(",") if name.strip())
