# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Messages to ids: the tokenizer of any checkpoint, and prompts as `LlavaMiniProcessor` writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig
from vllm.renderers.hf import HfRenderer
from vllm.tokenizers.hf import CachedHfTokenizer, get_cached_tokenizer

from llava_mini.configuration_llava_mini import ORIGINAL_MODEL_TYPE
from llava_mini.processing_llava_mini import LlavaMiniProcessor


class LlavaMiniTokenizer:
    """vLLM's hook for tokenizers: the authors' checkpoints have one without placeholders, which our processor adds."""

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | Path, *args, truncation_side: str = "left", revision: str | None = None, **kwargs
    ):
        """As of `CachedHfTokenizer`."""
        values, _ = PreTrainedConfig.get_config_dict(path_or_repo_id, revision=revision)
        if values.get("model_type") != ORIGINAL_MODEL_TYPE:
            options = {"truncation_side": truncation_side, "revision": revision, **kwargs}
            return CachedHfTokenizer.from_pretrained(path_or_repo_id, *args, **options)
        processor = LlavaMiniProcessor.from_pretrained(path_or_repo_id, revision=revision)
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template
        tokenizer.truncation_side = truncation_side
        return get_cached_tokenizer(tokenizer)


class LlavaMiniRenderer(HfRenderer):
    """
    Prompts as `LlavaMiniProcessor.apply_chat_template` writes them: parts of a message in their order, placeholders
    that somebody typed taken for text; and none without its picture.
    """

    def render_messages(self, messages, params):
        """As in the base class."""
        with refusals():
            return super().render_messages(self._break_placeholders(messages), as_parts(params))

    async def render_messages_async(self, messages, params):
        """As in the base class."""
        with refusals():
            return await super().render_messages_async(self._break_placeholders(messages), as_parts(params))

    def _process_tokens(self, prompt, **kwargs):
        self._check_placeholders(prompt)
        return super()._process_tokens(prompt, **kwargs)

    async def _process_tokens_async(self, prompt, **kwargs):
        self._check_placeholders(prompt)
        return await super()._process_tokens_async(prompt, **kwargs)

    def _check_placeholders(self, prompt) -> None:
        """Without pictures no processor sees the prompt, so that its placeholders would be read as words."""
        if prompt.get("multi_modal_data"):
            return
        config = self.model_config.hf_config
        for kind, token_id in (("image", config.image_token_id), ("video", config.video_token_id)):
            if count := prompt["prompt_token_ids"].count(token_id):
                raise ValueError(
                    f"The prompt holds {count} {kind} placeholder(s), but no {kind}s were sent: send them, or take the "
                    "placeholders out of the text."
                )

    def _break_placeholders(self, messages):
        processor = self.get_mm_processor().info.get_hf_processor() if self.model_config.is_multimodal_model else None
        if processor is None:
            return messages

        def plain(text):
            for token in (processor.image_token, processor.video_token) if isinstance(text, str) else ():
                text = text.replace(token, f"{token[0]} {token[1:]}")
            return text

        def plain_part(part):
            return part | {"text": plain(part["text"])} if isinstance(part, dict) and "text" in part else plain(part)

        def plain_message(message):
            content = message.get("content")
            content = [plain_part(part) for part in content] if isinstance(content, list) else plain(content)
            return message | {"content": content} if content is not None else message

        return [plain_message(message) if isinstance(message, dict) else message for message in messages]


@contextmanager
def refusals() -> Iterator[None]:
    """What vLLM raises as RuntimeError where a request asks for a local file or writes a URL of another form."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def as_parts(params):
    """`ChatParams` under which the template gets a message's parts; vLLM does not see that ours read them."""
    return replace(params, chat_template_content_format="openai")
