# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What opens a turn of a chat, as token ids: by it a model tells an answer from a prompt."""

import os

from transformers import BatchEncoding, PreTrainedTokenizerBase


def find_turn_headers(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> dict[str, list[list[int]]]:
    """
    The ids that open what the assistant and what the user says, in every form that they take in a chat: the
    configuration's `assistant_headers` and `user_headers`. Empty where template or tokenizer don't tell.
    """
    unknown = {"assistant_headers": [], "user_headers": []}
    if not tokenizer.is_fast or not isinstance(chat_template, str):
        return unknown
    word = "word"
    turns = [{"role": role, "content": word} for role in ("user", "assistant", "user")]
    plain, prompt = (
        tokenizer.apply_chat_template(
            turns, chat_template=chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        for add_generation_prompt in (False, True)
    )
    opening, texts = prompt.removeprefix(plain), plain.split(word)
    if not opening or opening == prompt or len(texts) < 4:
        return unknown
    asking = os.path.commonprefix([texts[-4][::-1], texts[-2][::-1]])[::-1].rstrip(" ")
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    return {
        "assistant_headers": _ids_of(opening, prompt, encoded),
        "user_headers": _ids_of(asking, prompt, encoded) if asking else [],
    }


def _ids_of(piece: str, text: str, encoded: BatchEncoding) -> list[list[int]]:
    """The ids of every occurrence of `piece` in `text`, each sequence once."""
    found: list[list[int]] = []
    start = text.find(piece)
    while start >= 0:
        spans = zip(encoded["input_ids"], encoded["offset_mapping"])
        ids = [token for token, (first, end) in spans if first < start + len(piece) and end > start]
        if ids not in found:
            found.append(ids)
        start = text.find(piece, start + 1)
    return found
