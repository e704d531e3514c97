# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Text, images and videos to model inputs: placeholders, chat templates, batches."""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import TextInput
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, cached_file, is_torchvision_available, logging
from transformers.video_utils import VideoInput

from .configuration_llava_mini import HUB_OPTIONS, ORIGINAL_MODEL_TYPE
from .image_processing_pil_llava_mini import LlavaMiniImageProcessorPil
from .original_processing_llava_mini import OriginalProcessor, read_original_processor
from .turn_headers_llava_mini import find_turn_headers


if is_torchvision_available():
    from .image_processing_llava_mini import LlavaMiniImageProcessor
    from .video_processing_llava_mini import LlavaMiniVideoProcessor


logger = logging.get_logger(__name__)


class LlavaMiniProcessor(ProcessorMixin):
    r"""
    Image processor, video processor and tokenizer of LLaVA-Mini in one.

    Args:
        image_processor (`LlavaMiniImageProcessor` or `LlavaMiniImageProcessorPil`).
        tokenizer (`PreTrainedTokenizerBase`):
            Has to have the image and the video token. It pads on the left, as generation needs, unless it was made with
            a `padding_side` of its own.
        video_processor (`LlavaMiniVideoProcessor`).
        chat_template (`str`, *optional*): Jinja template of a chat.
        compressor_size (`int`, defaults to 1):
            C of the model: an image's placeholder becomes C*C tokens, a video's frames * C*C.
        image_token (`str`, defaults to `"<image>"`), video_token (`str`, defaults to `"<video>"`):
            The placeholders. Those that the tokenizer names itself (`tokenizer.image_token`) win.

    Raises:
        ValueError: the parts don't fit together; the message says which and what to change.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> import llava_mini

    >>> processor = AutoProcessor.from_pretrained("path/to/converted")
    >>> content = [{"type": "image", "path": "cake.jpg"}, {"type": "text", "text": "What is on the cake?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True,
    ...     tokenize=True,
    ...     return_dict=True,
    ...     return_tensors="pt",
    ... )
    ```
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template: str | None = None,
        compressor_size: int = 1,
        image_token: str = "<image>",
        video_token: str = "<video>",
    ):
        if compressor_size < 1:
            raise ValueError(f"`compressor_size` is {compressor_size}, but has to be at least 1.")
        parts = {"image_processor": image_processor, "tokenizer": tokenizer, "video_processor": video_processor}
        parts = {name: part for name, part in parts.items() if name in self.get_attributes()}
        super().__init__(**parts, chat_template=chat_template)
        self.compressor_size = compressor_size
        self.image_token = getattr(tokenizer, "image_token", None) or image_token
        self.video_token = getattr(tokenizer, "video_token", None) or video_token
        self.image_token_id = _token_id(tokenizer, self.image_token)
        self.video_token_id = _token_id(tokenizer, self.video_token)

        # Without torchvision, what is loaded as video processor is nothing but its settings.
        if "video_processor" in parts and video_processor.resolution_ratio != image_processor.resolution_ratio:
            raise ValueError(
                f"`resolution_ratio` is {image_processor.resolution_ratio} in the image processor and "
                f"{video_processor.resolution_ratio} in the video processor. Both have to have the model's."
            )
        # Set on the tokenizer and not only passed to it: pipelines pad batches by its attribute.
        if "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *, backend: str | None = None, **kwargs):
        """
        As in the base class, and: the authors' checkpoints load as they are.

        Args:
            backend (`str`, *optional*):
                "pil" for the authors' exact image pixels, "torchvision" for speed; by default what is installed.
        """
        if original := _read_original_config(pretrained_model_name_or_path, kwargs):
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            parts = read_original_processor(pretrained_model_name_or_path, original, **hub_options)
            return cls.from_original(parts, backend)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if backend is not None:
            # Passed on to all parts, it would reach the video processor, which has one backend and refuses others.
            processor.image_processor = AutoImageProcessor.from_pretrained(
                pretrained_model_name_or_path, backend=backend, **kwargs
            )
        return processor

    @classmethod
    def from_original(cls, parts: OriginalProcessor, backend: str | None = None) -> "LlavaMiniProcessor":
        """The processor of the authors' checkpoint with these `parts`; `backend` as of `from_pretrained`."""
        pil = backend == "pil" or not is_torchvision_available()
        image_processor_class = LlavaMiniImageProcessorPil if pil else LlavaMiniImageProcessor
        return cls(
            image_processor_class(**parts.pixels, do_pad=parts.do_pad),
            parts.tokenizer,
            LlavaMiniVideoProcessor(**parts.pixels) if is_torchvision_available() else None,
            chat_template=parts.chat_template,
            compressor_size=parts.compressor_size,
        )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> list[str]:
        """As in the base class."""
        if not is_torchvision_available():
            logger.warning("Saved without its video processor, which needs torchvision: videos will not be read.")
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts; video processors need torchvision, images and text work without it."""
        attributes = super().get_attributes()
        return attributes if is_torchvision_available() else [name for name in attributes if name != "video_processor"]

    @property
    def num_image_tokens(self) -> int:
        """C*C, the tokens that stand for one image or one video frame."""
        return self.compressor_size**2

    def prepare_inputs_layout(self, images: ImageInput | None = None, **kwargs):
        """As in the base class; lists without any image or video count as none."""
        images, text, videos, audio = super().prepare_inputs_layout(images=images, **kwargs)
        images = None if images is not None and not make_flat_list_of_images(images) else images
        videos = None if isinstance(videos, (list, tuple)) and not self._flatten_videos(videos) else videos
        return images, text, videos, audio

    def validate_inputs(
        self,
        images: ImageInput | None = None,
        text: list[TextInput] | None = None,
        videos: VideoInput | None = None,
        audio=None,
        **kwargs,
    ):
        """
        Placeholders and images or videos have to be as many: in each prompt when they come in one list a prompt, else
        in all prompts together.

        Raises:
            ValueError: they aren't, there is no input at all, or there is sound.
        """
        if audio is not None:
            raise ValueError("Got `audio`, but LLaVA-Mini reads text, images and videos.")
        if images is None and text is None and videos is None:
            raise ValueError("Got no input. Pass `text`, `images` or `videos`.")
        if text is None:
            return
        if not all(isinstance(prompt, str) for prompt in text):
            raise ValueError("`text` has to be a string or a list of strings. Tokenized text can't be expanded.")
        _check_counts("image", self.image_token, text, images, make_flat_list_of_images)
        _check_counts("video", self.video_token, text, videos, self._flatten_videos)

    def _flatten_videos(self, videos: VideoInput) -> list:
        if not is_torchvision_available():
            raise ImportError("Videos need torchvision: `pip install torchvision`. Images work without it.")
        return self.video_processor.flatten_videos(videos)

    def _process_videos(self, videos: VideoInput, **kwargs) -> tuple[BatchFeature, list[str]]:
        inputs = self.video_processor(videos, **kwargs)
        return inputs, [self.replace_video_token(inputs, i) for i in range(len(inputs["video_num_frames"]))]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The C*C tokens that an image's placeholder becomes."""
        return self.image_token * self.num_image_tokens

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """The frames * C*C tokens that a video's placeholder becomes."""
        return self.video_token * (int(video_inputs["video_num_frames"][video_idx]) * self.num_image_tokens)

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[tuple[int, int]] | None = None,
        video_sizes: list[tuple[int, int, int]] | None = None,
        **kwargs,
    ) -> MultiModalData:
        """
        Placeholder tokens without processing anything.

        Args:
            image_sizes: (height, width) of each image; the number of tokens doesn't depend on it.
            video_sizes: (frames after sampling, height, width) of each video.
        """
        data = {}
        if image_sizes is not None:
            data["num_image_tokens"] = [self.num_image_tokens] * len(image_sizes)
            # Rows of `pixel_values` an image takes.
            data["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            data["num_video_tokens"] = [frames * self.num_image_tokens for frames, _, _ in video_sizes]
        return MultiModalData(**data)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        load_audio_from_video: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> str | list[str] | BatchFeature | list:
        """
        As in the base class, with three differences.

        - A conversation that ends with an answer of the assistant, next to images or videos, also gives a
          `text_fusion_mask` that leaves all answers out of pre-fusion, as the model was trained: training and scoring
          with it are right whatever a trainer does with `labels`. The template has to mark answers with
          `{% generation %}`. A prompt for `generate` gets none: earlier answers are read with the images as all text
          before the new one is. `return_assistant_tokens_mask=True` asks for it in any case.
        - Placeholders that somebody typed are text, not images: `<image>` becomes `< image>`.
        - `load_audio_from_video` is ignored: LLaVA-Mini hears nothing, and `transformers serve` always asks for it.

        Raises:
            ValueError: a message or a part of its content is no dictionary with what it needs.
        """
        conversation = self._take_typed_placeholders_for_text(conversation)
        wants_masks = kwargs.pop("return_assistant_tokens_mask", False)
        marks = wants_masks or self._ends_with_answers(conversation, chat_template or self.chat_template, kwargs)
        # The base class writes into this dictionary.
        processor_kwargs = dict(processor_kwargs or {})
        inputs = super().apply_chat_template(
            conversation,
            chat_template,
            processor_kwargs=processor_kwargs,
            return_assistant_tokens_mask=marks,
            **kwargs,
        )
        if isinstance(inputs, BatchFeature) and "assistant_masks" in inputs:
            _add_text_fusion_mask(inputs)
            if not wants_masks:
                del inputs["assistant_masks"]
        return inputs

    def _ends_with_answers(self, conversation: list, template: str | dict | None, options: dict) -> bool:
        is_prompt = options.get("add_generation_prompt") or options.get("continue_final_message")
        if is_prompt or not (options.get("tokenize") and options.get("return_dict")) or not self.tokenizer.is_fast:
            return False
        conversations = [conversation] if conversation and isinstance(conversation[0], dict) else conversation
        ends = all(chat and chat[-1].get("role") == "assistant" for chat in conversations)
        return bool(conversations) and ends and isinstance(template, str) and "generation" in template

    def _take_typed_placeholders_for_text(self, conversation: list) -> list:
        if not isinstance(conversation, (list, tuple)):
            return conversation  # something of upstream's, which it knows how to read
        return [self._plain(message) for message in conversation]

    def _plain(self, message) -> dict | list:
        message = _as_plain_data(message)
        if isinstance(message, (list, tuple)):
            return [self._plain(part) for part in message]
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError(f"A message has to be a dictionary with 'role' and 'content', but one is {message!r:.80}.")
        content = message.get("content")
        if isinstance(content, str):
            return message | {"content": self.break_placeholders(content)}
        if not isinstance(content, (list, tuple)):
            return message
        return message | {"content": [self._plain_part(_as_plain_data(part)) for part in content]}

    def _plain_part(self, part: dict) -> dict:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError(
                "A part of a message's content has to be a dictionary with a 'type' (text, image or video), but one is "
                f"{part!r:.80}."
            )
        if part["type"] != "text":
            return part
        if not isinstance(part.get("text"), str):
            raise ValueError(f"A part of type 'text' has to have a string as 'text', but one is {part!r:.80}.")
        return part | {"text": self.break_placeholders(part["text"])}

    def break_placeholders(self, text: str) -> str:
        """Text that somebody typed as `apply_chat_template` passes it on: its `<image>` is text and no image."""
        for token in (self.image_token, self.video_token):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def find_turn_headers(self) -> dict[str, list[list[int]]]:
        """
        The token ids that open what the assistant and what the user says, in every form that they take in a chat: the
        configuration's `assistant_headers` and `user_headers`, with which the model tells an answer from a prompt.
        Empty where the chat template or the tokenizer doesn't tell.

        Example:

        ```python
        >>> model.config.update(processor.find_turn_headers())
        ```
        """
        return find_turn_headers(self.tokenizer, self.chat_template)


def _read_original_config(name_or_path: str | os.PathLike, options: dict) -> dict | None:
    """The authors' config.json, where there is one and no processor of ours."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    quiet |= {name: options[name] for name in HUB_OPTIONS if name in options}
    if cached_file(name_or_path, PROCESSOR_NAME, **quiet) or not cached_file(name_or_path, CONFIG_NAME, **quiet):
        return None
    values, _ = PreTrainedConfig.get_config_dict(name_or_path, **quiet)
    return values if values.get("model_type") == ORIGINAL_MODEL_TYPE else None


def _as_plain_data(value):
    """Objects that stand for messages (OpenAI's, LangChain's, dataclasses) as what they hold, else what came."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif callable(getattr(value, "model_dump", None)):
        value = value.model_dump()
    else:
        return getattr(value, "messages", value)
    return {name: part for name, part in value.items() if part is not None}


def _add_text_fusion_mask(inputs: BatchFeature) -> None:
    masks = inputs["assistant_masks"]
    is_array = isinstance(masks, (torch.Tensor, np.ndarray))
    has_answers = masks.any() if is_array else any(map(any, masks))
    if has_answers and {"pixel_values", "pixel_values_videos"} & inputs.keys():
        inputs["text_fusion_mask"] = 1 - masks if is_array else [[1 - value for value in mask] for mask in masks]


def _token_id(tokenizer, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or (token_id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ValueError(
            f"The tokenizer has no token {token!r}. Load it with "
            "`extra_special_tokens={'image_token': '<image>', 'video_token': '<video>'}`."
        )
    return token_id


def _check_counts(kind: str, token: str, text: list[str], inputs, flatten: Callable[..., list]) -> None:
    placeholders = [prompt.count(token) for prompt in text]
    has_rows = isinstance(inputs, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in inputs)
    if has_rows and len(inputs) == len(text):
        given = [len(flatten([row])) for row in inputs]
    else:
        placeholders, given = [sum(placeholders)], [0 if inputs is None else len(flatten(inputs))]
    if placeholders != given:
        raise ValueError(
            f"Got {' + '.join(map(str, given))} {kind}s and {' + '.join(map(str, placeholders))} {token!r} "
            f"placeholders in the text. Write one {token!r} for each {kind}, or let `apply_chat_template` do it."
        )


__all__ = ["LlavaMiniProcessor"]
