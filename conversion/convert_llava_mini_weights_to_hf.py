# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Turns a checkpoint of the LLaVA-Mini authors into a directory that transformers loads with its Auto classes.

    python conversion/convert_llava_mini_weights_to_hf.py INPUT OUTPUT [--vision-tower DIR_OR_REPO]

Tensors go from the input's files to the output's a shard at a time, so that a machine with far less memory than the
model can convert it. The output appears whole or not at all.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModel

from checkpoint_io import (
    LazyTensor,
    Tensors,
    atomic_directory,
    check_disk_space,
    check_output,
    read_checkpoint,
    read_json,
    write_checkpoint,
)
from config_mapping import convert_config, list_defaults
from key_mapping import TOWER, ignored_reason, rename_key
from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from tokenizer_conversion import IMAGE_TOKEN, VIDEO_TOKEN, convert_generation_config, convert_tokenizer
from vision_tower import find_vision_tower


# Shards are in memory one at a time; the Hub's usual 5 GB would fill a small machine.
MAX_SHARD_SIZE = "2GB"
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# Grown vocabularies are a multiple of this, which matrix units like.
VOCABULARY_MULTIPLE = 64


@dataclass
class Report:
    """
    What became of every tensor.

    Args:
        used: names in the output for every name of the input.
        ignored: why a tensor of the input, or a setting, is not in the output.
        filled: where a tensor or setting of the output comes from when not from the input.
    """

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.ignored)} entries ignored, {len(self.filled)} filled in"]
        lines += [f"  ignored {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"  filled {name}: {reason}" for name, reason in self.filled.items()]
        return "\n".join(lines)


def convert(
    input_dir: str | Path,
    output_dir: str | Path,
    vision_tower: str | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    show_progress: bool = False,
) -> Report:
    """
    Converts the authors' checkpoint in `input_dir`; see the module.

    Args:
        vision_tower: directory or Hub repository of the CLIP tower. By default what the checkpoint's
            `mm_vision_tower` names, a relative path being relative to the checkpoint.
        overwrite: replace `output_dir` if there is something in it.
        max_shard_size: upper bound of an output file, and so of what is in memory at a time.
        show_progress: whether to draw a progress bar.

    Returns:
        What became of every tensor.

    Raises:
        ValueError: unusable input or output; the message says what to do. Nothing is written in that case.
    """
    source, output = Path(input_dir), Path(output_dir)
    check_output(output, overwrite, sources=[source])
    original_config = read_json(source / "config.json")
    tensors = read_checkpoint(source)
    tower = find_vision_tower(source, original_config, tensors, vision_tower)
    tokenizer, placed = convert_tokenizer(source)
    generation_config, inert = convert_generation_config(source, original_config, tokenizer)

    report = Report(ignored=dict(tower.ignored))
    report.ignored |= {f"generation_config {name}": "sampling is off" for name in inert}
    report.filled |= {f"config {k}": f"the authors' default, {v!r}" for k, v in list_defaults(original_config).items()}
    targets = rename_tensors(tensors | tower.tensors, report)
    config = convert_config(
        original_config,
        tower.config,
        image_token_id=placed[IMAGE_TOKEN].token_id,
        video_token_id=placed[VIDEO_TOKEN].token_id,
        dtype=most_common_dtype(targets),
    )
    config.architectures = [LlavaMiniForConditionalGeneration.__name__]
    check_tensors(targets, config)
    grow_embeddings(targets, config, report)

    check_disk_space(output, targets)
    with atomic_directory(output) as folder:
        tokenizer.save_pretrained(folder)
        generation_config.save_pretrained(folder)
        write_checkpoint(targets, folder, max_shard_size, show_progress)
        config.save_pretrained(folder)  # last, since no directory loads without it
    return report


def rename_tensors(tensors: Tensors, report: Report) -> Tensors:
    """
    The tensors under our names, packed ones split; entered in the report.

    Raises:
        ValueError: names that no LLaVA-Mini checkpoint has.
    """
    targets: Tensors = {}
    unknown = []
    for key, tensor in tensors.items():
        if reason := ignored_reason(key):
            report.ignored[key] = reason
            continue
        names = rename_key(key)
        if not names:
            unknown.append(key)
            continue
        report.used[key] = names
        size = tensor.shape[0] // len(names) if tensor.shape else 0
        for i, name in enumerate(names):
            targets[name] = tensor if len(names) == 1 else tensor.rows(i * size, (i + 1) * size)
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensor(s) have unexpected names, such as {unknown[0]!r}: this is no LLaVA-Mini "
            "checkpoint, or one with parts that this converter does not know."
        )
    return targets


def most_common_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of the data."""
    sizes: Counter = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def check_tensors(tensors: Tensors, config: LlavaMiniConfig) -> None:
    """
    Raises:
        ValueError: a tensor that the configuration calls for is missing or has another shape, or there is one too
            many.
    """
    expected = expected_shapes(config)
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    mismatched = sorted(name for name in set(expected) & set(tensors) if tensors[name].shape != expected[name])
    if missing:
        hint = "pass --vision-tower" if missing[0].startswith(TOWER) else "download the checkpoint's files again"
        raise ValueError(f"{len(missing)} tensor(s) are missing, such as {missing[0]!r}: {hint}.")
    if unexpected:
        raise ValueError(
            f"{len(unexpected)} tensor(s) are unexpected, such as {unexpected[0]!r}: config.json describes a smaller "
            "model; use the one that belongs to these weights."
        )
    if mismatched:
        name = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} tensor(s) have the wrong shape, such as {name!r}: {tensors[name].shape} instead of "
            f"{expected[name]} by config.json; use the one that belongs to these weights."
        )


def expected_shapes(config: LlavaMiniConfig) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of everything a converted checkpoint holds: the model's and, so that nothing is lost, the tower
    layers past the selected one, which the model does not build.
    """
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(config)
        tower = AutoModel.from_config(config.vision_config)
    tensors = model.state_dict() | {TOWER + name: tensor for name, tensor in tower.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def grow_embeddings(tensors: Tensors, config: LlavaMiniConfig, report: Report) -> None:
    """Gives both embedding matrices rows for placeholders beyond their end: the mean of the rows they have."""
    text, size = config.text_config, max(config.image_token_id, config.video_token_id) + 1
    if size <= text.vocab_size:
        return
    size = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in EMBEDDINGS:
        if name in tensors:
            report.filled[f"{name} rows {text.vocab_size} to {size - 1}"] = "the mean of the other rows"
            tensors[name] = append_mean_rows(tensors[name], size)
    text.vocab_size = size


def append_mean_rows(tensor: LazyTensor, size: int) -> LazyTensor:
    """The matrix with its mean row repeated until it has `size` rows."""

    def load() -> torch.Tensor:
        matrix = tensor.load()
        mean = matrix.mean(dim=0, keepdim=True, dtype=torch.float32).to(matrix.dtype)
        return torch.cat([matrix, mean.expand(size - len(matrix), -1)])

    return LazyTensor((size, *tensor.shape[1:]), tensor.dtype, load)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="directory of the authors' checkpoint")
    parser.add_argument("output", metavar="OUTPUT", help="directory to write")
    parser.add_argument("--vision-tower", metavar="DIR_OR_REPO", help="CLIP tower, instead of `mm_vision_tower`")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if there is something in it")
    options = parser.parse_args(arguments)
    try:
        report = convert(
            options.input,
            options.output,
            vision_tower=options.vision_tower,
            overwrite=options.overwrite,
            show_progress=True,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    print(f"Wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
