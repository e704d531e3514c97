# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""One answer: made in the model's thread, read piece by piece in the event loop, stopped by a text or by the client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import torch
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList


# What tokenizers decode the bytes of an unfinished character to.
UNFINISHED = "\ufffd"


@dataclass
class Answer:
    """What is known of an answer beside its text."""

    num_prompt_tokens: int
    num_tokens: int
    finish_reason: str


class Generation(StoppingCriteria):
    """
    Args:
        model (`PreTrainedModel`).
        inputs (`BatchFeature`): of one prompt.
        config (`GenerationConfig`).
        decode (`Callable`): ids to text.
        stop (`tuple[str, ...]`):
            The answer ends before the first of these. `generate` has `stop_strings`, but keeps them in the answer and
            compares them with every token of the vocabulary first.
        seed (`int`, *optional*): of what is sampled.
        loop: the event loop that reads `pieces`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: BatchFeature,
        config: GenerationConfig,
        decode: Callable[..., str],
        stop: tuple[str, ...],
        seed: int | None,
        loop: asyncio.AbstractEventLoop,
    ):
        self.model, self.inputs, self.config = model, inputs, config
        self.decode, self.stop, self.seed, self.loop = decode, stop, seed, loop
        # So much of the text's end may be the beginning of a stop string.
        self.num_held_back = max(map(len, stop), default=1) - 1
        self.num_prompt_tokens = inputs["input_ids"].shape[1]
        self.queue: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.sent = ""
        self.is_stopped = False
        self.answer: Answer | None = None

    def cancel(self):
        """Ends the generation at its next token, or before its first."""
        self.cancelled.set()

    async def pieces(self) -> AsyncIterator[str]:
        """
        The text as it is made; `answer` is set at its end.

        Raises:
            What the model raised.
        """
        while (piece := await self.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def run(self):
        """Makes the answer; blocks, so it belongs into the model's thread."""
        try:
            if not self.cancelled.is_set():
                self._generate()
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self.inputs = None

    def _generate(self):
        if self.seed is not None:
            torch.manual_seed(self.seed)
        inputs = self.inputs.to(self.model.device)
        criteria = StoppingCriteriaList([self])
        ids = self.model.generate(**inputs, generation_config=self.config, stopping_criteria=criteria)
        new_ids = ids[0, self.num_prompt_tokens :]
        self._send_text(new_ids, is_last=True)
        ends = self.config.eos_token_id
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        has_ended = self.is_stopped or (len(new_ids) > 0 and new_ids[-1].item() in ends)
        self.answer = Answer(self.num_prompt_tokens, len(new_ids), "stop" if has_ended else "length")

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """Called by `generate` after every token: sends the new text; true ends the answer."""
        self._send_text(input_ids[0, self.num_prompt_tokens :])
        is_done = self.is_stopped or self.cancelled.is_set()
        return torch.full(input_ids.shape[:1], is_done, dtype=torch.bool, device=input_ids.device)

    def _send_text(self, new_ids: torch.LongTensor, is_last: bool = False):
        # All ids each time: decoded one by one they would lose spaces and halves of characters.
        text = self.decode(new_ids, skip_special_tokens=True)
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        self.is_stopped = bool(found)
        if found:
            text = text[: min(found)]
        elif not is_last:
            text = text[: len(text) - self.num_held_back] if self.num_held_back else text
            text = text.rstrip(UNFINISHED)
        if len(text) > len(self.sent) and text.startswith(self.sent):
            self._put(text[len(self.sent) :])
            self.sent = text

    def _put(self, piece: str | BaseException | None):
        self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)
