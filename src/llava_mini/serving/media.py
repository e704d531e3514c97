# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Images and videos of a request: fetched from where the server allows, and looked at before they are decoded."""

import asyncio
import base64
import ipaddress
import os
import socket
import stat
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import PIL.Image

from llava_mini.serving.chat_requests import Media
from llava_mini.serving.exchange import Holding, RefusedRequest
from llava_mini.serving.settings import Settings, split_names


MAX_REDIRECTS = 3
# Formats of Pillow that are pictures and nothing more. EPS starts a program, others read what a browser never shows.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# FFmpeg's readers of single files. Playlists (hls, dash, concat) are left out, since they open what they name.
VIDEO_FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,flv,asf,ogg,mpegts,mpeg,mpegvideo,gif,m4v,h264,hevc"
# Addresses that stand for another address, which ipaddress does not look into.
TRANSLATED_NETWORKS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


class MediaReader:
    """
    Gets the bytes behind an image's or a video's URL, and refuses what is too much before it is decoded.

    Args:
        settings (`Settings`).
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.domains = split_names(settings.allowed_media_domains)
        folder = settings.allowed_local_media_path
        self.folder = None if folder is None else folder.resolve(strict=True)

    async def fetch_all(self, media: list[Media], holding: Holding) -> list[bytes | str]:
        """
        Fetches a request's media at the same time, so that they have one time limit together.

        Returns:
            Of each the content, or the URL itself if it has the content in it.

        Raises:
            RefusedRequest: the server does not read from there, or it can't be read within the limits.
        """
        tasks = [asyncio.ensure_future(self._fetch(item, holding)) for item in media]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, media: Media, holding: Holding) -> bytes | str:
        scheme = media.url[:8].partition(":")[0].lower()
        if scheme == "data":
            return media.url
        if scheme in ("http", "https"):
            try:
                return await asyncio.wait_for(self._download(media, holding), self.settings.media_timeout)
            except asyncio.TimeoutError as error:
                message = f"{media.url[:80]!r} did not come within {self.settings.media_timeout:g} s (--media-timeout)."
                raise RefusedRequest(message, media.param, code="media_timeout") from error
        content = await asyncio.to_thread(self._read_local, media)
        holding.add(len(content))
        return content

    async def _download(self, media: Media, holding: Holding) -> bytes:
        url = media.url
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._resolve(url, media)
            try:
                content = await self._get(httpx.URL(url), addresses, media, holding)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                reason = str(error).partition("\n")[0][:200]
                message = f"Could not fetch {url[:80]!r}: {type(error).__name__}: {reason}."
                raise RefusedRequest(message, media.param, code="media_not_fetched") from error
            if isinstance(content, bytes):
                return content
            url = content
        message = f"{media.url[:80]!r} was redirected more than {MAX_REDIRECTS} times."
        raise RefusedRequest(message, media.param, code="media_not_fetched")

    async def _resolve(self, url: str, media: Media) -> list[str]:
        """The addresses of an allowed URL's host, looked up once, so that the checked one is the one that is used."""
        try:
            target = httpx.URL(url)
            host, port = target.raw_host.decode().lower().rstrip("."), target.port
        except (httpx.InvalidURL, ValueError) as error:
            raise RefusedRequest(f"{url[:80]!r} is no URL: {error}.", media.param) from error
        if target.scheme not in ("http", "https") or host not in self.domains or target.userinfo:
            raise RefusedRequest(
                f"{url[:80]!r} is not at one of the hosts that this server fetches from (--allowed-media-domains). "
                "Send the file as a data URL.",
                media.param,
                code="media_not_allowed",
            )
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port or target.scheme, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise RefusedRequest(f"The host of {url[:80]!r} is not known.", media.param) from error
        addresses = [entry[4][0] for entry in found]
        if not addresses or not all(map(is_public, addresses)):
            raise RefusedRequest(
                f"The host of {url[:80]!r} is at an address that is not public. Send the file as a data URL.",
                media.param,
                code="media_not_allowed",
            )
        return addresses

    async def _get(self, url: httpx.URL, addresses: list[str], media: Media, holding: Holding) -> bytes | str:
        """One request: the content, or the URL that it is redirected to."""
        # Compressed answers could grow while they are read.
        headers = {"Host": url.netloc.decode(), "Accept-Encoding": "identity", "User-Agent": "llava-mini-hf"}
        extensions = {"sni_hostname": url.raw_host.decode()}
        # A proxy of the environment would look the name up again.
        async with httpx.AsyncClient(trust_env=False, timeout=self.settings.media_timeout) as client:
            request = client.build_request(
                "GET", url.copy_with(host=addresses[0]), headers=headers, extensions=extensions
            )
            response = await client.send(request, stream=True)
            try:
                if response.has_redirect_location:
                    return str(url.join(response.headers["Location"]))
                response.raise_for_status()
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ValueError("the answer is compressed")
                return await self._read_response(response, media, holding)
            finally:
                await response.aclose()

    async def _read_response(self, response: httpx.Response, media: Media, holding: Holding) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_raw():
            if len(content) + len(chunk) > self.settings.max_media_bytes:
                raise self._too_large(media)
            holding.add(len(chunk))
            content.extend(chunk)
        return bytes(content)

    def _read_local(self, media: Media) -> bytes:
        not_allowed = RefusedRequest(
            f"{media.url[:80]!r} is no data URL and no file that this server reads (--allowed-local-media-path). Send "
            "the file as a data URL.",
            media.param,
            code="media_not_allowed",
        )
        if self.folder is None:
            raise not_allowed
        try:
            parts = urlsplit(media.url)
            name = unquote(parts.path) if parts.scheme == "file" and not parts.netloc else media.url
            path = (self.folder / name).resolve(strict=True)
            if not path.is_relative_to(self.folder):
                raise not_allowed
            return self._read_file(path, media, not_allowed)
        except (OSError, ValueError, RuntimeError) as error:
            # The same sentence for what is missing, so that nobody learns which files there are.
            raise not_allowed from error

    def _read_file(self, path: Path, media: Media, not_allowed: RefusedRequest) -> bytes:
        # A pipe would be waited for, and a link may have been put there since the path was resolved.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise not_allowed
            content = file.read(self.settings.max_media_bytes + 1)
        if len(content) > self.settings.max_media_bytes:
            raise self._too_large(media)
        return content

    def _too_large(self, media: Media) -> RefusedRequest:
        message = f"{media.url[:80]!r} has more than {self.settings.max_media_mib:g} MiB (--max-media-mib)."
        return RefusedRequest(message, media.param, code="media_too_large")

    def fill_in(self, media: list[Media], contents: list[bytes | str]):
        """
        Puts fetched media into their messages as data URLs, once their headers have shown that they are within the
        limits. Blocks, so it belongs into a worker.

        Raises:
            RefusedRequest: one is no image or video, or there are too many pixels or frames.
        """
        pixels = frames = 0
        for item, content in zip(media, contents):
            if isinstance(content, str):
                content = decode_data_url(content, item.param)
            if item.kind == "image":
                width, height = image_size(content, item.param)
                pixels += width * height
                self._check_pixels(pixels, width, height, "images have", item)
            else:
                width, height, count = video_size(content, item.param, self.settings.max_video_frames - frames)
                frames += count
                self._check_pixels(width * height, width, height, "video's frames have", item)
                if frames > self.settings.max_video_frames:
                    message = (
                        f"The videos have more than {self.settings.max_video_frames} frames (--max-video-frames). "
                        "Send a shorter one, or one with fewer frames a second."
                    )
                    raise RefusedRequest(message, item.param, code="too_many_frames")
            item.part["url"] = f"data:{item.kind}/*;base64," + base64.b64encode(content).decode()

    def _check_pixels(self, pixels: int, width: int, height: int, which: str, media: Media):
        limit = self.settings.max_pixels
        if pixels > limit:
            message = (
                f"The {which} more than {limit} pixels (--max-pixels; this one {width}x{height}). Send smaller ones."
            )
            raise RefusedRequest(message, media.param, code="too_many_pixels")


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet's: not private, loopback, link-local, reserved or multicast."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if any(parsed in network for network in TRANSLATED_NETWORKS if network.version == parsed.version):
        return False
    return parsed.is_global and not parsed.is_multicast


def decode_data_url(url: str, param: str) -> bytes:
    """
    The bytes in a data URL of base64, also of the URL-safe alphabet or without its padding.

    Raises:
        RefusedRequest: it is none.
    """
    header, comma, encoded = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RefusedRequest(f"{url[:80]!r} is no data URL of base64 (data:image/png;base64,...).", param)
    encoded = "".join(encoded.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        content = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise RefusedRequest(f"The data URL's base64 is broken: {error}.", param) from error
    if not content:
        raise RefusedRequest("The data URL is empty.", param)
    return content


def image_size(content: bytes, param: str) -> tuple[int, int]:
    """
    Width and height of an image by its header.

    Raises:
        RefusedRequest: it is no image of the usual formats.
    """
    # Builds of Pillow differ in what they know.
    PIL.Image.init()
    try:
        formats = [name for name in IMAGE_FORMATS if name in PIL.Image.OPEN]
        with PIL.Image.open(BytesIO(content), formats=formats) as image:
            return image.size
    except PIL.Image.DecompressionBombError as error:
        raise RefusedRequest(f"The image has too many pixels (--max-pixels): {error}", param) from error
    # Pillow's readers of headers raise what they meet.
    except Exception as error:
        message = f"The image can't be read, it is damaged or none of {', '.join(IMAGE_FORMATS)}: {str(error)[:120]}."
        raise RefusedRequest(message, param, code="unreadable_media") from error


def video_size(content: bytes, param: str, max_frames: int) -> tuple[int, int, int]:
    """
    Width, height and number of packets of a video, without decoding any; counting ends beyond `max_frames`.

    Raises:
        RefusedRequest: it is no video of the usual formats.
    """
    import av

    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(BytesIO(content), options=options) as container:
            streams = container.streams.video
            if not streams:
                raise ValueError("it has no pictures")
            count = 0
            for packet in container.demux(streams[0]):
                count += bool(packet.size)
                if count > max_frames:
                    break
            return streams[0].width, streams[0].height, count
    except (av.error.FFmpegError, ValueError, EOFError, OSError) as error:
        message = f"The video can't be read, it is damaged or in no usual format: {str(error)[:120]}."
        raise RefusedRequest(message, param, code="unreadable_media") from error
