# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The authors' generation settings, and the way of a tokenizer back to them; the way here is
`llava_mini.original_tokenizer_llava_mini`.
"""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from llava_mini.conversion.reading.checkpoint_io import read_json, write_json
from llava_mini.original_tokenizer_llava_mini import (  # noqa: F401 (offered here together)
    IMAGE_TOKEN,
    TOKENIZER_FILES,
    VIDEO_TOKEN,
    convert_tokenizer,
    has_tokenizer,
)


SAMPLING_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def write_for_transformers_4(folder: Path) -> None:
    """Rewrites the tokenizer in `folder`, saved by transformers 5, so that the authors' transformers 4.43 reads it."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [])
        template = folder / "chat_template.jinja"
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
            template.unlink()
        write_json(path, settings)
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = read_json(path)
        merges = tokenizer["model"].get("merges", [])
        if not any(" " in part for pair in merges for part in pair):
            tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
        write_json(path, tokenizer)


def convert_generation_config(
    directory: Path, original_config: dict, tokenizer: PreTrainedTokenizerBase
) -> tuple[GenerationConfig, list[str]]:
    """
    The generation settings of `directory` with a pad id, or, when it has none, the ids of its configuration; and
    the names of settings left out, since they say how to sample where sampling is off (transformers refuses to save
    those, and nothing reads them).

    Raises:
        ValueError: the file is no JSON object.
    """
    if (directory / "generation_config.json").is_file():
        generation_config = GenerationConfig.from_dict(read_json(directory / "generation_config.json"))
    else:
        ids = {key: original_config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation_config = GenerationConfig(**ids)
    if generation_config.eos_token_id is None:
        generation_config.eos_token_id = original_config.get("eos_token_id", tokenizer.eos_token_id)
    if generation_config.pad_token_id is None:
        generation_config.pad_token_id = tokenizer.pad_token_id
    if generation_config.do_sample:
        return generation_config, []
    inert = [name for name in SAMPLING_SETTINGS if getattr(generation_config, name) is not None]
    for name in inert:
        setattr(generation_config, name, None)
    return generation_config, inert
