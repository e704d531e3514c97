# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""/v1/chat/completions: a body to inputs, in workers, and inputs to an answer, in the model's one thread."""

import asyncio
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2 import TemplateError
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from llava_mini.serving.chat_requests import ChatRequest, parse_chat_request
from llava_mini.serving.exchange import Holding, RefusedRequest, Send, error_body, send_json
from llava_mini.serving.generation import Answer, Generation
from llava_mini.serving.media import MediaReader
from llava_mini.serving.settings import Settings


logger = logging.get_logger(__name__)

# Threads that decode; more would only wait for the model.
NUM_DECODERS = 2
# Requests whose pixels are in memory: one that runs, and enough behind it that the model does not wait.
NUM_PREPARED = 4
# Frames of a video unless the request says more: what `transformers serve` takes.
DEFAULT_NUM_FRAMES = 32
# Characters that are tokenized at a time to see whether a text is far too long.
TOKENIZED_CHARACTERS = 2**14


class ChatCompletions:
    """
    Answers chats with one model, a request at a time.

    Args:
        model_name (`str`): the name that clients know the model by.
        model (`PreTrainedModel`), processor (`ProcessorMixin`): LLaVA-Mini's.
        chat_handler: transformers' own handler, which knows the server's generation options.
        settings (`Settings`).
    """

    def __init__(
        self, model_name: str, model: PreTrainedModel, processor: ProcessorMixin, chat_handler, settings: Settings
    ):
        self.model_name, self.model, self.processor, self.settings = model_name, model, processor, settings
        self.chat_handler = chat_handler
        self.created = int(time.time())
        self.media_reader = MediaReader(settings)
        self.decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="decoder")
        # One thread for every generation, as CUDA graphs of compiled models need it.
        self.runner = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.prepared = asyncio.Semaphore(NUM_PREPARED)
        text_config = model.config.get_text_config()
        self.num_positions, self.vocab_size = text_config.max_position_embeddings, text_config.vocab_size
        # At least one position is the answer's.
        self.max_prompt_tokens = min(settings.max_prompt_tokens or self.num_positions, self.num_positions - 1)
        self.longest_token = max(map(len, processor.tokenizer.get_vocab()))
        # Takes off what tokenizer.json may say of padding; done by two workers at once it fails ("Already borrowed").
        processor.tokenizer("")

    async def answer(self, body: bytes, holding: Holding, send: Send):
        """
        Reads a request and sends its answer, whole or streamed.

        Raises:
            RefusedRequest: nothing is sent then.
        """
        loop = asyncio.get_running_loop()
        request = await asyncio.to_thread(
            parse_chat_request, body, self.model_name, self.vocab_size, self.settings.max_images
        )
        self._check_length(request.num_characters)
        contents = await self.media_reader.fetch_all(request.media, holding)
        await self.prepared.acquire()
        generation = finished = None
        try:
            inputs = await loop.run_in_executor(self.decoders, self.prepare, request, contents)
            config = self.build_generation_config(request, inputs["input_ids"].shape[1])
            decode = self.processor.tokenizer.decode
            generation = Generation(self.model, inputs, config, decode, request.stop, request.seed, loop)
            # Not waited for by a client that reads slowly.
            finished = loop.run_in_executor(self.runner, generation.run)
            finished.add_done_callback(lambda future: (self.prepared.release(), future.exception()))
            await (self._stream if request.stream else self._send_whole)(request, generation, send)
        finally:
            if finished is None:
                self.prepared.release()
            else:
                generation.cancel()

    def prepare(self, request: ChatRequest, contents: list[bytes | str]) -> BatchFeature:
        """
        The model's inputs; runs in a worker.

        Raises:
            RefusedRequest: the prompt is too long, or the media can't be read.
        """
        self.media_reader.fill_in(request.media, contents)
        try:
            text = self.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
            self._check_text(text)
            inputs = self.processor.apply_chat_template(
                request.messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **self._template_options(request),
            )
        except RefusedRequest:
            raise
        except (ValueError, OSError, TemplateError) as error:
            raise RefusedRequest(f"The messages can't be read: {str(error)[:300]}", "messages") from error
        # What decoders and templates raise on a stranger's input is that input's fault; the log has the rest.
        except Exception as error:
            logger.warning("A request could not be prepared.", exc_info=True)
            message = f"The messages can't be read: {type(error).__name__}: {str(error)[:200]}"
            raise RefusedRequest(message, "messages") from error
        self._check_num_tokens(inputs["input_ids"].shape[1])
        return inputs

    def _template_options(self, request: ChatRequest) -> dict[str, Any]:
        options = dict(self.chat_handler.chat_template_kwargs)
        if any(media.kind == "video" for media in request.media):
            if request.video_options:
                options = {name: value for name, value in options.items() if name not in ("num_frames", "fps")}
            elif not {"num_frames", "fps"} & options.keys():
                options["num_frames"] = DEFAULT_NUM_FRAMES
            options.update(request.video_options)
        return options

    def _check_length(self, num_characters: int):
        # Tokenizing 10 MB takes gigabytes, and no token has more characters than the longest of the vocabulary.
        if num_characters > self.max_prompt_tokens * self.longest_token:
            raise self._too_long(f"{num_characters} characters, which are")

    def _check_text(self, text: str):
        """Before any pixel, and a piece at a time, since a tokenizer needs a kilobyte a token."""
        count = 0
        for start in range(0, len(text), TOKENIZED_CHARACTERS):
            piece = text[start : start + TOKENIZED_CHARACTERS]
            count += len(self.processor.tokenizer(piece, add_special_tokens=False)["input_ids"])
            # Cut apart, words become more tokens, though never so many; the exact number is checked with the pixels.
            if count > 2 * self.max_prompt_tokens:
                raise self._too_long(f"some {count} tokens,")

    def _check_num_tokens(self, num_tokens: int):
        if num_tokens > self.max_prompt_tokens:
            raise self._too_long(f"{num_tokens} tokens,")

    def _too_long(self, what: str) -> RefusedRequest:
        return RefusedRequest(
            f"The prompt has {what} more than {self.max_prompt_tokens} tokens (--max-prompt-tokens; the model has "
            f"{self.num_positions} positions). Shorten it.",
            "messages",
            code="context_length_exceeded",
        )

    def build_generation_config(self, request: ChatRequest, num_prompt_tokens: int) -> GenerationConfig:
        """
        The model's own generation settings, with what the request asks for.

        Raises:
            RefusedRequest: it asks for too many tokens.
        """
        room = self.num_positions - num_prompt_tokens
        wanted = request.max_new_tokens
        if wanted is not None and wanted > self.settings.max_new_tokens:
            message = f"`max_tokens` is {wanted}, more than {self.settings.max_new_tokens} (--max-new-tokens)."
            raise RefusedRequest(message, "max_tokens")
        if wanted is not None and wanted > room:
            raise RefusedRequest(
                f"`max_tokens` is {wanted}, but a prompt of {num_prompt_tokens} tokens leaves {room} of the model's "
                f"{self.num_positions} positions. Ask for less.",
                "max_tokens",
                code="context_length_exceeded",
            )
        limit = wanted or min(self.settings.max_new_tokens, room)
        sampling = dict(request.sampling)
        # Asked for a temperature or a nucleus, OpenAI's models sample; upstream leaves it to the checkpoint.
        temperature, top_p = sampling.get("temperature"), sampling.get("top_p", 1)
        is_greedy = temperature == 0
        if is_greedy:
            sampling = {name: value for name, value in sampling.items() if name not in ("temperature", "top_p")}
        config = self.chat_handler._build_generation_config(
            {**sampling, "max_tokens": limit}, self.model.generation_config
        )
        if is_greedy or temperature or top_p < 1:
            config.do_sample = not is_greedy
        return config

    async def _send_whole(self, request: ChatRequest, generation: Generation, send: Send):
        text = ""
        async for piece in generation.pieces():
            text += piece
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
        choice["finish_reason"] = generation.answer.finish_reason
        body = {**self._envelope("chat.completion"), "choices": [choice], "usage": _usage(generation.answer)}
        await send_json(send, 200, body)

    async def _stream(self, request: ChatRequest, generation: Generation, send: Send):
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        envelope = self._envelope("chat.completion.chunk")

        async def event(data: dict[str, Any] | str, more_body: bool = True):
            text = data if isinstance(data, str) else json.dumps(data)
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": more_body})

        async def chunk(delta: dict[str, str], finish_reason: str | None = None, **fields):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            await event({**envelope, "choices": [choice], **fields})

        await chunk({"role": "assistant", "content": ""})
        try:
            async for piece in generation.pieces():
                await chunk({"content": piece})
        # The status is sent already, so the stream has to carry the error.
        except Exception:
            logger.exception("The model failed on a request.")
            await event(error_body("The model failed; the server's log says why.", "server_error"), more_body=False)
            return
        usage = {"usage": _usage(generation.answer)}
        await chunk({}, generation.answer.finish_reason, **({} if request.include_usage else usage))
        if request.include_usage:
            await event({**envelope, "choices": [], **usage})
        await event("[DONE]", more_body=False)

    def _envelope(self, kind: str) -> dict[str, Any]:
        identifier = f"chatcmpl-{uuid.uuid4().hex}"
        return {"id": identifier, "object": kind, "created": int(time.time()), "model": self.model_name}


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_tokens,
    }
