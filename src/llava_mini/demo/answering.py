# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions to answers: one model, one thread in which all of it runs."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from llava_mini.cli_arguments import sampling_options
from llava_mini.demo.conversation import Asked, Media, read_media, to_messages
from llava_mini.demo.limits import Limits, Refusal
from llava_mini.demo.report import Figures
from llava_mini.demo.session import Session, Subject
from llava_mini.flops import PrefillCosts
from llava_mini.serving.generation import Generation
from llava_mini.video_streaming import VideoStream, write_prompt
from llava_mini.vision_context_llava_mini import LlavaMiniVisionContext
from llava_mini.visualization import PictureAttention, picture_attention, video_attention


logger = logging.get_logger(__name__)

# Pictures or frames whose attention is shown: each takes a pass of its own, and is held in memory.
MAX_LOOKS = 16


@dataclass(frozen=True)
class Sampling:
    """How to decode; a temperature of 0 takes the likeliest token."""

    temperature: float
    top_p: float
    max_new_tokens: int


class TimedGeneration(Generation):
    """A `Generation` that knows when its first token was there (`time.perf_counter`)."""

    first_token_at: float | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """Called by `generate` after every token."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        return super().__call__(input_ids, scores, **kwargs)


@dataclass
class Prepared:
    """A prompt that is ready to run, with what is known of its cost."""

    inputs: BatchFeature
    context: LlavaMiniVisionContext | None
    figures: Figures


class Answerer:
    """
    Args:
        model (`LlavaMiniForConditionalGeneration`), processor (`LlavaMiniProcessor`).
        limits (`Limits`).
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits):
        self.model, self.processor, self.limits = model, processor, limits
        self.costs = PrefillCosts(model.config)
        self.num_positions = model.config.get_text_config().max_position_embeddings
        self.runner = ThreadPoolExecutor(1, thread_name_prefix="model")

    def warm_up(self):
        """
        One token about a blank picture: what can't run here, as some quantised shapes, is told before anybody asks.

        Raises:
            Whatever the model raises.
        """
        blank = PIL.Image.new("RGB", (8, 8))
        session = Session(Path())
        session.subject = Subject(("blank",), Media([blank], [], ["image"]))
        prepared = self._prepare(session, Asked(("blank",), (), "?"))
        self.model.generate(**prepared.inputs, max_new_tokens=1, do_sample=False)

    async def answer(
        self, session: Session, asked: Asked, sampling: Sampling
    ) -> AsyncIterator[tuple[str, Figures | None]]:
        """
        The answer so far, again and again; with its figures from the first token on. Closed early, it ends the
        generation at the next token.

        Raises:
            Refusal: it can't be answered.
        """
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        prepared = await loop.run_in_executor(self.runner, self._prepare, session, asked)
        config = copy.deepcopy(self.model.generation_config)
        room = self.num_positions - prepared.figures.prompt_tokens
        config.update(
            max_new_tokens=min(sampling.max_new_tokens, self.limits.max_new_tokens, room),
            max_length=None,
            **sampling_options(sampling.temperature, sampling.top_p if sampling.temperature else None),
        )
        decode = self.processor.tokenizer.decode
        generation = TimedGeneration(self.model, prepared.inputs, config, decode, (), None, loop)
        finished = loop.run_in_executor(self.runner, generation.run)
        figures, text = prepared.figures, ""
        try:
            async for piece in generation.pieces():
                text += piece
                figures = replace(figures, first_token=generation.first_token_at - started)
                yield text.strip(), figures
            await finished
            kept = 0 if prepared.context is None else prepared.context.nbytes
            first_token = (generation.first_token_at or time.perf_counter()) - started
            times = (generation.answer.num_tokens, time.perf_counter() - started)
            yield text.strip(), replace(figures, first_token=first_token, kept_bytes=kept, times=times)
        finally:
            generation.cancel()

    def _prepare(self, session: Session, asked: Asked) -> Prepared:
        """Runs in the model's thread: reads and encodes what is new, and writes the prompt."""
        subject = session.subject
        if subject is None or subject.files != asked.files:
            media = read_media(asked.files, self.limits)
            session.subject = subject = Subject(asked.files, media)
        messages = to_messages(asked, subject.media)
        is_reused = subject.context is not None
        pixels = {}
        if subject.media.kinds and not is_reused:
            pixels = self._read_pixels(subject)
        inputs = write_prompt(self.processor, messages, subject.num_frames)
        self._check_length(inputs["input_ids"].shape[1])
        inputs = inputs.to(self.model.device)
        if pixels:
            subject.context = self._encode(pixels)
        figures = self._count(inputs["input_ids"], subject, is_reused)
        if subject.context is not None:
            inputs["vision_context"] = subject.context
        return Prepared(inputs, subject.context, replace(figures, is_new=asked.is_new))

    def _read_pixels(self, subject: Subject) -> dict:
        """Pixels of pictures and streams of clips."""
        pixels = {}
        try:
            if subject.media.images:
                part = self.processor.image_processor
                pixels["pixel_values"] = part(subject.media.images, return_tensors="pt")["pixel_values"]
            if subject.media.videos:
                streams = self._open_clips(subject)
                pixels["pixel_values_videos"] = streams
        except ValueError as error:
            raise Refusal(f"What you sent can't be read: {str(error)[:300]}") from error
        return pixels

    def _open_clips(self, subject: Subject) -> list[VideoStream]:
        """The checkpoint's own frames a second, or evenly spread ones where those would be too many."""
        part, videos = self.processor.video_processor, subject.media.videos
        share = max(1, self.limits.max_frames // len(videos))
        streams = [VideoStream(video, part) for video in videos]
        subject.asked_frames = [None if stream.num_frames <= share else share for stream in streams]
        streams = [
            stream if asked is None else VideoStream(video, part, num_frames=asked)
            for stream, asked, video in zip(streams, subject.asked_frames, videos)
        ]
        subject.num_frames = [stream.num_frames for stream in streams]
        return streams

    def _encode(self, pixels: dict) -> LlavaMiniVisionContext:
        pixels = {
            name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value
            for name, value in pixels.items()
        }
        try:
            with torch.no_grad():
                return self.model.encode_visuals(**pixels, keep_text=True)
        except ValueError as error:
            # A clip is decoded only now.
            raise Refusal(f"What you sent can't be read: {str(error)[:300]}") from error

    def _check_length(self, num_tokens: int):
        # One position at least is the answer's.
        if num_tokens >= self.num_positions:
            raise Refusal(
                f"The conversation has {num_tokens} tokens, and the model has {self.num_positions} positions: clear "
                "the chat, or send fewer pictures or a shorter clip."
            )

    def _count(self, input_ids: torch.Tensor, subject: Subject, is_reused: bool) -> Figures:
        """What the prefill will take, from the tokens that will run."""
        base, length = self.model.model, input_ids.shape[1]
        vision_tokens = subject.num_images * self.costs.mini_tokens
        kept = kept_fused = 0
        mask = base.get_text_fusion_mask(input_ids, base.embed_prompt(input_ids)) if subject.num_images else None
        fused = 0 if mask is None else int(mask.sum())
        turn = None if subject.context is None else subject.context.turn
        if turn is not None:
            kept = turn.count_shared(input_ids, mask, base.get_placeholder_mask(turn.input_ids, None))
            kept_fused = int(mask[0, :kept].sum())
        text_tokens = length - vision_tokens
        fresh = self.costs.mini(subject.num_images, text_tokens, fused)
        return Figures(
            num_images=subject.num_images,
            vision_tokens=vision_tokens,
            llava_tokens=subject.num_images * self.costs.llava_tokens,
            prompt_tokens=length,
            run_tokens=length - kept,
            flops=self.costs.mini(subject.num_images, text_tokens, fused, kept, kept_fused, is_encoded=is_reused),
            fresh_flops=fresh,
            llava_flops=self.costs.llava(subject.num_images, text_tokens),
            first_token=0.0,
            is_reused=is_reused,
        )

    async def look(self, session: Session, question: str) -> list[PictureAttention]:
        """What the vision tokens and the question's words looked at, of the first pictures and frames."""
        return await asyncio.get_running_loop().run_in_executor(self.runner, self._look, session, question)

    def _look(self, session: Session, question: str) -> list[PictureAttention]:
        subject = session.subject
        if subject is None:
            return []
        looks = []
        images = iter(subject.media.images)
        videos = iter(zip(subject.media.videos, subject.num_frames, subject.asked_frames))
        for kind in subject.media.kinds:
            room = MAX_LOOKS - len(looks)
            if not room:
                break
            if kind == "image":
                looks.append(picture_attention(self.model, self.processor, next(images), question))
            else:
                video, count, wanted = next(videos)
                wanted = wanted if count <= room else room
                sheet = video_attention(self.model, self.processor, video, question, num_frames=wanted)
                looks += sheet.frames
        session.looks = looks
        return looks
