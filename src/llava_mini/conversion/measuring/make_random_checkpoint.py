# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Writes a made-up checkpoint in the authors' layout, of the 8B release's true size (18.5 GB) or of any other.

    python conversion/make_random_checkpoint.py OUTPUT [--scale 0.1]

The weights are random and the tokenizer knows only bytes and Llama 3.1's special tokens, at their true ids when the
scale is 1. It is for trying the converter where the released weights are not at hand.
"""

import argparse
import sys
import zlib
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from llava_mini import LlavaMiniConfig
from llava_mini.configuration_llava_mini import DEFAULT_VISION_CONFIG
from llava_mini.conversion.mapping.config_mapping import restore_config
from llava_mini.conversion.mapping.model_layout import expected_shapes
from llava_mini.conversion.reading.checkpoint_io import LazyTensor, write_checkpoint, write_json
from llava_mini.conversion.writing.conversion_report import Report
from llava_mini.conversion.writing.output_directory import atomic_directory, check_disk_space
from llava_mini.conversion.writing.to_original import DEFAULT_TOWER_NAME, restore_tensors


NUM_SPECIAL_TOKENS = 256
# Llama 3.1's special tokens by their place after the ordinary ones; all other places are reserved.
SPECIAL_TOKENS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
STOP_PLACES = (9, 8, 1)
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
PROJECTOR_TYPE = "mlp2x_gelu"
TOWER_FOLDER = "vision_tower"
RANDOM_BLOCK = 2**20
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def make_checkpoint(
    output_dir: str | Path,
    scale: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int | str = "2GB",
    overwrite: bool = False,
    show_progress: bool = False,
) -> None:
    """
    Writes a random checkpoint in the authors' layout; see the module.

    Args:
        scale: of widths, layer counts and vocabulary of Llama 3.1 8B; the tower's image and patch size stay.

    Raises:
        ValueError: unusable output.
    """
    output = Path(output_dir).resolve()
    config = scaled_config(scale, dtype)
    shapes = expected_shapes(config)
    tensors = {name: random_tensor(name, shape, dtype) for name, shape in shapes.items()}
    originals = restore_tensors(tensors, PROJECTOR_TYPE, Report())
    is_released_tower = all(getattr(config.vision_config, k) == v for k, v in DEFAULT_VISION_CONFIG.items())
    original_config = restore_config(config, known={}) | {
        "mm_vision_tower": DEFAULT_TOWER_NAME if is_released_tower else TOWER_FOLDER,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 4096,
    }
    check_disk_space(output, originals)
    with atomic_directory(output, overwrite) as folder:
        make_tokenizer(config.text_config.vocab_size).save_pretrained(folder)
        ids = {key: original_config[key] for key in ("bos_token_id", "eos_token_id")}
        write_json(folder / "generation_config.json", ids | SAMPLING)
        if not is_released_tower:
            config.vision_config.save_pretrained(folder / TOWER_FOLDER)
        write_checkpoint(originals, folder, max_shard_size, show_progress)
        write_json(folder / "config.json", original_config)


def scaled_config(scale: float, dtype: torch.dtype) -> LlavaMiniConfig:
    """The release's configuration, its sizes times `scale` as far as they divide evenly."""
    heads = max(4, round(32 * scale / 4) * 4)  # four to one key-value head
    vision_heads = max(1, round(16 * scale / 4) * 4)
    num_ordinary = max(256, round(128_000 * scale))  # at least the bytes
    first_special = num_ordinary
    return LlavaMiniConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": num_ordinary + NUM_SPECIAL_TOKENS,
            "hidden_size": 128 * heads,
            "intermediate_size": 448 * heads,
            "num_hidden_layers": max(2, round(32 * scale)),
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 4,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": dict(ROPE_SCALING),
            "bos_token_id": first_special,
            "eos_token_id": [first_special + place for place in STOP_PLACES],
        },
        vision_config=DEFAULT_VISION_CONFIG
        | {
            "hidden_size": 64 * vision_heads,
            "intermediate_size": 256 * vision_heads,
            "num_hidden_layers": max(2, round(24 * scale)),
            "num_attention_heads": vision_heads,
        },
        num_prefusion_layers=max(1, round(4 * scale)),
        prefusion_ignored_token_ids=[0],
        image_token_id=first_special + NUM_SPECIAL_TOKENS - 2,
        video_token_id=first_special + NUM_SPECIAL_TOKENS - 1,
        dtype=dtype,
    )


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    """Normal values that depend on the name only, small, or near one in norms."""

    def load() -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        # Random numbers for a whole model take minutes; what repeats after a million values converts as well.
        block = torch.randn(RANDOM_BLOCK, generator=generator).mul_(0.02).add_(float("norm" in name)).to(dtype)
        count = torch.Size(shape).numel()
        return block.repeat(-(-count // RANDOM_BLOCK))[:count].reshape(shape)

    return LazyTensor(shape, dtype, load)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, never-used filler and Llama 3.1's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" comes first, as in Llama 3
    num_ordinary = vocab_size - NUM_SPECIAL_TOKENS
    filler = [f"<filler {i}>" for i in range(len(alphabet), num_ordinary)]
    vocabulary = {token: i for i, token in enumerate(alphabet + filler)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = iter(range(NUM_SPECIAL_TOKENS))
    names = [
        SPECIAL_TOKENS.get(place) or f"<|reserved_special_token_{next(reserved)}|>"
        for place in range(NUM_SPECIAL_TOKENS)
    ]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[9])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="directory to write")
    parser.add_argument("--scale", type=float, default=1.0, help="of widths and layer counts (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if there is something in it")
    options = parser.parse_args(arguments)
    try:
        make_checkpoint(options.output, options.scale, overwrite=options.overwrite, show_progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
