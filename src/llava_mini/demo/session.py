# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What is kept of a visitor between questions, and when it goes."""

import contextlib
import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image

from llava_mini.demo.conversation import Media
from llava_mini.demo.limits import Limits
from llava_mini.vision_context_llava_mini import LlavaMiniVisionContext
from llava_mini.visualization import PictureAttention


@dataclass
class Subject:
    """
    What a visitor's conversation is about.

    Args:
        files (`tuple[str, ...]`): its pictures and clips in the upload folder.
        media (`Media`): the same in memory.
        num_frames (`list[int]`): frames that are taken from each clip.
        asked_frames (`list[int | None]`): the same where it was asked for; `None` is the checkpoint's own rule.
        context (`LlavaMiniVisionContext`, *optional*): what is kept of them; `None` before the first question, and when
            others needed the room.
    """

    files: tuple[str, ...]
    media: Media
    num_frames: list[int] = field(default_factory=list)
    asked_frames: list[int | None] = field(default_factory=list)
    context: LlavaMiniVisionContext | None = None

    @property
    def num_images(self) -> int:
        """Pictures and frames."""
        return len(self.media.images) + sum(self.num_frames)


@dataclass
class Session:
    """
    One visitor, that is, one open page.

    Args:
        folder (`Path`): for the pictures of what was looked at; its name can't be guessed.
        subject (`Subject`, *optional*).
        looks (`list[PictureAttention]`): what was looked at, a picture or frame each.
        files (`set[str]`): all that the visitor has uploaded.
    """

    folder: Path
    subject: Subject | None = None
    looks: list[PictureAttention] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def forget(self):
        """Begins anew: nothing that was uploaded or seen is kept but the files that the page still shows."""
        self.subject, self.looks = None, []
        shutil.rmtree(self.folder, ignore_errors=True)

    def save_picture(self, picture: PIL.Image.Image) -> str:
        """Writes a picture for the page to fetch, and returns its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{secrets.token_urlsafe(8)}.webp"
        picture.save(path)
        return str(path)


class Sessions:
    """
    All visitors, by the name that gradio gives their page.

    Args:
        folder (`Path`): for their pictures of what was looked at.
        uploads (`Path`): where gradio puts what they upload; nothing elsewhere is ever removed.
        limits (`Limits`).
    """

    def __init__(self, folder: Path, uploads: Path, limits: Limits):
        self.folder, self.uploads, self.limits = folder, uploads.resolve(), limits
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, name: str) -> Session:
        """A visitor, who is now the one heard last; with too many the one that was silent longest goes."""
        with self.lock:
            session = self.sessions.get(name) or Session(self.folder / secrets.token_urlsafe(16))
            self.sessions[name] = session
            self.sessions.move_to_end(name)
            gone = [self.sessions.popitem(last=False)[1] for _ in range(len(self.sessions) - self.limits.max_visitors)]
        for session_gone in gone:
            self._remove(session_gone)
        return session

    def close(self, name: str):
        """Removes all that is kept of a visitor, files included."""
        with self.lock:
            session = self.sessions.pop(name, None)
        if session is not None:
            self._remove(session)

    def make_room(self):
        """Drops contexts of those who were silent longest until the rest fits; who asks then has them encoded anew."""
        with self.lock:
            kept = [
                session.subject for session in self.sessions.values() if session.subject and session.subject.context
            ]
            total = sum(subject.context.nbytes for subject in kept)
            for subject in kept[:-1]:
                if total <= self.limits.max_kept_bytes:
                    return
                total -= subject.context.nbytes
                subject.context = None

    def _remove(self, session: Session):
        session.forget()
        with self.lock:
            # Gradio keeps equal files of several visitors once.
            shared = {file for other in self.sessions.values() for file in other.files}
        for file in session.files - shared:
            path = Path(file)
            if path.resolve().is_relative_to(self.uploads):
                path.unlink(missing_ok=True)
                # The folder of this content; a visitor who sent it under another name may still have that.
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
        session.files = set()
