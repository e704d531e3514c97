# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Bodies of /v1/chat/completions: read, checked field by field, and refused with a reason."""

import json
import re
import reprlib
from dataclasses import dataclass, field
from typing import Any

from llava_mini.serving.exchange import RefusedRequest


# Values that a body may have. A real one has some dozens and base64 has no commas; 32 MiB of `[[],[],...` would become
# a gigabyte of lists.
MAX_JSON_VALUES = 100_000
# OpenAI's own numbers.
MAX_STOPS, MAX_LOGIT_BIASES, MAX_BIAS, MAX_TEMPERATURE, MAX_PENALTY = 4, 300, 100, 2, 2
# Scores are divided by the temperature, and by 1 + the penalty: less would make them infinite in half precision.
MIN_TEMPERATURE, MIN_PENALTY = 0.01, -0.9
# Characters of a stop string; the whole answer is searched for it at every token.
MAX_STOP_LENGTH = 256
# What a torch generator takes in every version.
MAX_SEED = 2**63 - 1
# Frames a second that may be asked for; what a video has is a limit of its own.
MAX_FPS = 1000

TEXT_ROLES = ("system", "developer", "assistant")
ROLES = (*TEXT_ROLES, "user")
# Each kind of part by its type.
MEDIA_TYPES = {"image_url": "image", "video_url": "video"}
# Fields that change nothing in an answer of this model.
IGNORED_FIELDS = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}
# Fields that only have a meaning here when they ask for nothing. Ignoring another value would be a wrong answer.
NEUTRAL_VALUES: dict[str, tuple] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
READ_FIELDS = {
    "chat_template_kwargs",
    "frequency_penalty",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
}


@dataclass
class Media:
    """An image or a video of a request: `part` is its place in the messages, to be filled in when it is fetched."""

    kind: str
    url: str
    param: str
    part: dict[str, Any]


@dataclass
class ChatRequest:
    """A body that was found good. `sampling` has OpenAI's names; `messages` are the processor's."""

    messages: list[dict[str, Any]]
    media: list[Media]
    num_characters: int
    sampling: dict[str, Any]
    seed: int | None
    stop: tuple[str, ...]
    max_new_tokens: int | None
    stream: bool
    include_usage: bool
    video_options: dict[str, int | float] = field(default_factory=dict)


def parse_chat_request(body: bytes, model_name: str, vocab_size: int, max_images: int) -> ChatRequest:
    """
    Reads a request's body.

    Args:
        body (`bytes`): JSON.
        model_name (`str`): the served model's; a request may leave it out and not ask for another.
        vocab_size (`int`): of the model, for `logit_bias`.
        max_images (`int`): images and videos that a request may have.

    Raises:
        RefusedRequest: the body is no request that this server answers; the message says why.
    """
    fields = {name: value for name, value in _read_json(body).items() if value is not None}
    _check_fields(fields)
    _check_model(fields.get("model"), model_name)
    reader = _MessageReader(max_images)
    messages = reader.read(fields.get("messages"))
    stream = _flag(fields, "stream")
    return ChatRequest(
        messages=messages,
        media=reader.media,
        num_characters=reader.num_characters,
        sampling=_read_sampling(fields, vocab_size),
        seed=_integer(fields, "seed", 0, MAX_SEED),
        stop=_read_stop(fields.get("stop")),
        max_new_tokens=_read_max_tokens(fields),
        stream=stream,
        include_usage=_read_stream_options(fields, stream),
        video_options=_read_video_options(fields.get("chat_template_kwargs", {})),
    )


def _read_json(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise RefusedRequest(f"The body has more than {MAX_JSON_VALUES} values (commas and brackets).", status=413)
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RefusedRequest("The body is nested too deeply.") from error
    except ValueError as error:
        raise RefusedRequest(f"The body is no JSON: {str(error)[:200]}.", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise RefusedRequest(f"The body is {_show(fields)}, expected an object with `messages`.")
    return fields


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number in JSON")


def _check_fields(fields: dict[str, Any]):
    for name, value in fields.items():
        if name in NEUTRAL_VALUES:
            if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL_VALUES[name]):
                raise RefusedRequest(
                    f"`{name}` is {_show(value)}, which LLaVA-Mini can't do. Leave it out.",
                    name,
                    code="unsupported_parameter",
                )
        elif name not in IGNORED_FIELDS | READ_FIELDS:
            message = f"There is no field {_show(name)} here. Leave it out."
            raise RefusedRequest(message, name[:80], code="unknown_parameter")


def _check_model(requested: Any, served: str):
    if requested is None:
        return
    if not isinstance(requested, str):
        raise RefusedRequest(f"`model` is {_show(requested)}, expected a string.", "model")
    if requested != served:
        message = f"There is no model {_show(requested)}; this server has {served!r}."
        raise RefusedRequest(message, "model", status=404, code="model_not_found")


class _MessageReader:
    """Messages in OpenAI's form to the processor's, with the media and the characters that it met."""

    def __init__(self, max_images: int):
        self.max_images = max_images
        self.media: list[Media] = []
        self.num_characters = 0

    def read(self, messages: Any) -> list[dict[str, Any]]:
        if not isinstance(messages, list) or not messages:
            raise RefusedRequest(f"`messages` is {_show(messages)}, expected a list of at least one.", "messages")
        read = [self._message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        if not any(message["role"] == "user" for message in read):
            raise RefusedRequest("No message is the user's. Ask something.", "messages")
        return read

    def _message(self, message: Any, param: str) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise RefusedRequest(f"A message is {_show(message)}, expected an object.", param)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RefusedRequest(f"The role is {_show(role)}, expected one of {', '.join(ROLES)}.", f"{param}.role")
        for name, value in message.items():
            # Answers come back with their empty fields, which clients send along in the next turn.
            if name not in ("role", "content", "name") and value not in (None, [], {}):
                raise RefusedRequest(
                    f"A message has {_show(name)}, which LLaVA-Mini can't read.", f"{param}.{name}"[:80]
                )
        param += ".content"
        if isinstance(content, str):
            parts = [self._text(content, param)]
        elif isinstance(content, list) and content:
            parts = [self._part(part, role, f"{param}[{i}]") for i, part in enumerate(content)]
        else:
            raise RefusedRequest(f"A content is {_show(content)}, expected a string or a list of parts.", param)
        # The templates know OpenAI's newer name no more than the older models did.
        return {"role": "system" if role == "developer" else role, "content": parts}

    def _part(self, part: Any, role: str, param: str) -> dict[str, Any]:
        if not isinstance(part, dict):
            raise RefusedRequest(f"A content part is {_show(part)}, expected an object.", param)
        part_type = part.get("type")
        if part_type == "text":
            return self._text(part.get("text"), f"{param}.text")
        if not isinstance(part_type, str) or part_type not in MEDIA_TYPES:
            types = ", ".join(["text", *MEDIA_TYPES])
            raise RefusedRequest(f"A content part is of type {_show(part_type)}, expected {types}.", f"{param}.type")
        if role in TEXT_ROLES:
            raise RefusedRequest(f"A message of the {role} has a part of type {part_type}. Only users' may.", param)
        url = part.get(part_type)
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str) or not url:
            raise RefusedRequest(f"The URL is {_show(url)}, expected a string.", f"{param}.{part_type}.url")
        if len(self.media) == self.max_images:
            message = f"The request has more than {self.max_images} images and videos (--max-images). Send fewer."
            raise RefusedRequest(message, param, code="too_many_images")
        media = Media(MEDIA_TYPES[part_type], url, f"{param}.{part_type}.url", {"type": MEDIA_TYPES[part_type]})
        self.media.append(media)
        return media.part

    def _text(self, text: Any, param: str) -> dict[str, Any]:
        if not isinstance(text, str):
            raise RefusedRequest(f"A text is {_show(text)}, expected a string.", param)
        _check_unicode(text, param)
        self.num_characters += len(text)
        return {"type": "text", "text": text}


def _read_sampling(fields: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    temperature = _number(fields, "temperature", 0, MAX_TEMPERATURE)
    if temperature is not None and 0 < temperature < MIN_TEMPERATURE:
        message = f"`temperature` is {temperature}, expected 0 or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}."
        raise RefusedRequest(message, "temperature")
    sampling = {
        "temperature": temperature,
        "top_p": _number(fields, "top_p", 0, 1),
        "frequency_penalty": _number(fields, "frequency_penalty", MIN_PENALTY, MAX_PENALTY),
        "logit_bias": _read_logit_bias(fields.get("logit_bias", {}), vocab_size),
    }
    return {name: value for name, value in sampling.items() if value not in (None, {})}


def _read_logit_bias(biases: Any, vocab_size: int) -> dict[str, float]:
    if not isinstance(biases, dict) or len(biases) > MAX_LOGIT_BIASES:
        message = f"`logit_bias` is {_show(biases)}, expected an object of at most {MAX_LOGIT_BIASES} token ids."
        raise RefusedRequest(message, "logit_bias")
    for token_id in biases:
        if not re.fullmatch("[0-9]{1,9}", token_id) or int(token_id) >= vocab_size:
            message = f"`logit_bias` has {_show(token_id)}, expected token ids from 0 to {vocab_size - 1}."
            raise RefusedRequest(message, "logit_bias")
        if biases[token_id] is None:
            raise RefusedRequest(f"`logit_bias` has no value for {_show(token_id)}.", "logit_bias")
    return {str(int(token_id)): _number(biases, token_id, -MAX_BIAS, MAX_BIAS) for token_id in biases}


def _read_stop(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise RefusedRequest(f"`stop` is {_show(stop)}, expected a string or at most {MAX_STOPS} of them.", "stop")
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            message = f"`stop` has {_show(text)}, expected a string of 1 to {MAX_STOP_LENGTH} characters."
            raise RefusedRequest(message, "stop")
        _check_unicode(text, "stop")
    return tuple(stops)


def _read_max_tokens(fields: dict[str, Any]) -> int | None:
    values = {name: _integer(fields, name, 1) for name in ("max_completion_tokens", "max_tokens")}
    given = {value for value in values.values() if value is not None}
    if len(given) > 1:
        raise RefusedRequest(f"Got {values}, which exclude each other: send one.", "max_tokens")
    return given.pop() if given else None


def _read_stream_options(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        message = f"`stream_options` is {_show(options)}, expected {{'include_usage': ...}}, and only with `stream`."
        raise RefusedRequest(message, "stream_options")
    include_usage = options.get("include_usage")
    return include_usage is not None and _flag(
        {"stream_options.include_usage": include_usage}, "stream_options.include_usage"
    )


def _read_video_options(options: Any) -> dict[str, int | float]:
    """The sampling of a video's frames; any other key could reach the template or the processors."""
    if not isinstance(options, dict) or not options.keys() <= {"num_frames", "fps"}:
        message = f"`chat_template_kwargs` is {_show(options)}; only `num_frames` or `fps` may be in it here."
        raise RefusedRequest(message, "chat_template_kwargs")
    named = {f"chat_template_kwargs.{name}": value for name, value in options.items()}
    num_frames = _integer(named, "chat_template_kwargs.num_frames", 1)
    fps = _number(named, "chat_template_kwargs.fps", 1 / MAX_FPS, MAX_FPS)
    if num_frames is not None and fps is not None:
        raise RefusedRequest("`num_frames` and `fps` exclude each other: send one.", "chat_template_kwargs")
    return {name: value for name, value in (("num_frames", num_frames), ("fps", fps)) if value is not None}


def _integer(fields: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise RefusedRequest(f"`{name}` is {_show(value)}, expected an integer {bounds}.", name)
    return value


def _number(fields: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    # Compared before it becomes a float, which integers of 400 digits can't.
    if type(value) not in (int, float) or not low <= value <= high:
        raise RefusedRequest(f"`{name}` is {_show(value)}, expected a number from {low} to {high}.", name)
    return float(value)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise RefusedRequest(f"`{name}` is {_show(value)}, expected true or false.", name)
    return value


def _check_unicode(text: str, param: str):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedRequest(f"The text has half a character at {error.start} (a lone surrogate).", param) from error


def _show(value: Any) -> str:
    """A value in an error message, however large or deep."""
    return "missing" if value is None else reprlib.repr(value)
