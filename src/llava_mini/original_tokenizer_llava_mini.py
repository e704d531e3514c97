# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The authors' tokenizer with tokens for the places of images and videos, which their code keeps outside of it."""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file


CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
CHAT_TEMPLATE_NAMES = ("llama3", "vicuna_v1")
IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
RESERVED_TOKEN = re.compile(r"<\|reserved_special_token_(\d+)\|>")
# Llama 3.1's padding token; the authors train with it, though their tokenizer need not name it.
LLAMA_3_PAD_TOKEN = "<|finetune_right_pad_id|>"


@dataclass(frozen=True)
class PlacedToken:
    """The id of a placeholder and, in words, how it came to it."""

    token_id: int
    origin: str


def choose_chat_template(name: str | None, tokenizer: PreTrainedTokenizerBase, original_config: dict) -> str:
    """
    The text of a chat template.

    Args:
        name: one of ours or a file; by default the one whose tokens the tokenizer has.

    Raises:
        ValueError: no such template, none that fits, or one that leaves out tokens the model was trained with.
    """
    if name is None:
        if "<|start_header_id|>" in tokenizer.get_vocab():
            name = "llama3"
        elif tokenizer.eos_token == "</s>":
            name = "vicuna_v1"
        else:
            raise ValueError(
                "The tokenizer has neither Llama 3's nor Vicuna's tokens: say how a chat is written with "
                f"--chat-template, one of {', '.join(CHAT_TEMPLATE_NAMES)} or a Jinja file."
            )
    path = CHAT_TEMPLATES / f"{name}.jinja" if name in CHAT_TEMPLATE_NAMES else Path(name)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: --chat-template takes {', '.join(CHAT_TEMPLATE_NAMES)} or a file.")
    template = path.read_text(encoding="utf-8")
    if original_config.get("mm_use_im_start_end") and "<im_start>" not in template:
        raise ValueError(
            "The checkpoint was trained with <im_start> and <im_end> around images (`mm_use_im_start_end`): pass a "
            "template that writes them with --chat-template FILE."
        )
    return template


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory holds a vocabulary."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def convert_tokenizer(
    directory: Path, workplace: Path | None = None
) -> tuple[PreTrainedTokenizerBase, dict[str, PlacedToken]]:
    """
    The tokenizer of `directory` with `<image>` and `<video>`: as the vocabulary has them already, else in the place
    of the last reserved tokens (the first ones are those that new Llama versions take into use), else at the end.

    Args:
        workplace: directory for temporary files; by default the system's.

    Raises:
        ValueError: no tokenizer, or one that can't be read.
    """
    with tempfile.TemporaryDirectory(dir=workplace) as folder:
        # Apart from config.json, whose model type transformers does not know.
        for name in TOKENIZER_FILES:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, Path(folder) / name)
        source = _load(folder, directory)
        vocabulary = source.get_vocab()
        replaced = _choose_reserved_tokens(vocabulary)
        for token, reserved in replaced.items():
            _rename_token(Path(folder), reserved, token)
        options = {
            "padding_side": "left",
            "extra_special_tokens": {"image_token": IMAGE_TOKEN, "video_token": VIDEO_TOKEN},
            # A setting of old files that byte-pair tokenizers ignore, loudly.
            "clean_up_tokenization_spaces": False,
        }
        if source.pad_token is None:
            pad_token = LLAMA_3_PAD_TOKEN if LLAMA_3_PAD_TOKEN in vocabulary else source.unk_token
            options["pad_token"] = pad_token or source.eos_token
        tokenizer = _load(folder, directory, **options)
        tokenizer.init_kwargs.pop("auto_map", None)  # its code stays behind
    placed = {}
    for token, token_id in ((IMAGE_TOKEN, tokenizer.image_token_id), (VIDEO_TOKEN, tokenizer.video_token_id)):
        origin = f"in the place of {replaced[token]}" if token in replaced else "added at the end"
        placed[token] = PlacedToken(token_id, "the tokenizer's own" if token in vocabulary else origin)
    return tokenizer, placed


def _load(folder: str, source: Path, **options) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises nothing more special
        first_line = str(error).strip().split("\n")[0]
        hint = "expected tokenizer.json or tokenizer.model, and tokenizer_config.json"
        if (source / "tokenizer.model").is_file() and not (source / "tokenizer.json").is_file():
            hint = "a tokenizer.model alone takes `pip install sentencepiece protobuf` to read"
        if "custom code" in first_line:
            first_line = "it wants code of its own, which is not run here"
        raise ValueError(f"The tokenizer in {source} can't be read ({first_line}): {hint}.") from error


def _choose_reserved_tokens(vocabulary: dict[str, int]) -> dict[str, str]:
    wanted = [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token not in vocabulary]
    numbered = sorted((int(match[1]), match[0]) for match in map(RESERVED_TOKEN.fullmatch, vocabulary) if match)
    if len(numbered) < len(wanted):
        return {}
    return {token: name for token, (_, name) in zip(wanted, numbered[len(numbered) - len(wanted) :])}


def _rename_token(folder: Path, old: str, new: str) -> None:
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(json.dumps(old), json.dumps(new)), encoding="utf-8")


def tokenizer_directory(name_or_path: str | os.PathLike, **hub_options) -> Path | None:
    """The directory, or that of the copy of the Hub repository, with the tokenizer's files; `None` without any."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    paths = [cached_file(name_or_path, name, **quiet, **hub_options) for name in TOKENIZER_FILES]
    folder = next((Path(path).parent for path in paths if path is not None), None)
    return folder if folder is not None and has_tokenizer(folder) else None


__all__ = ["choose_chat_template", "convert_tokenizer", "tokenizer_directory"]
