# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether a converted checkpoint is what it should be, going by what the Auto classes make of it."""

import argparse
import sys
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import llava_mini  # noqa: F401 (registers the Auto classes)
from llava_mini.conversion.mapping.model_layout import common_dtype, expected_shapes
from llava_mini.conversion.reading.checkpoint_io import Tensors, is_finite, read_checkpoint


# The authors' float32 numbers on CPU; sums are taken in another order here.
TOLERANCE = 1e-5
EXPECTED_FILE = "tensors.safetensors"
# Where the authors' code has an image or a video among the ids.
ORIGINAL_IMAGE_ID = -200


def verify(directory: str | Path, intended: Tensors | None = None, expected: str | Path | None = None) -> list[str]:
    """
    Loads a converted checkpoint and compares.

    Args:
        intended: what was to be written, to be compared bit by bit.
        expected: directory of the authors' numbers for this checkpoint, `tensors.safetensors` in the layout of this
            project's tests/golden.

    Returns:
        What was found to be right, a line each.

    Raises:
        ValueError: something is wrong; the message says what.
    """
    directory = Path(directory)
    findings = [_verify_layout(directory), _verify_processor(directory), *_verify_values(directory, intended)]
    if expected is not None:
        findings.append(_verify_outputs(directory, Path(expected)))
    return findings


def _verify_layout(directory: Path) -> str:
    # On the meta device: reads every name and shape as loading does, but needs no memory.
    model, info = AutoModelForImageTextToText.from_pretrained(
        directory, output_loading_info=True, ignore_mismatched_sizes=True, device_map="meta"
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ValueError(f"{directory} loads with {kind.replace('_', ' ')}: {sorted(info[kind], key=str)[:3]}.")
    tensors = read_checkpoint(directory)
    shapes = expected_shapes(model.config)
    wrong = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
    if wrong or len(shapes) != len(tensors):
        raise ValueError(f"{directory} does not hold what its config.json describes, such as {(wrong or ['?'])[0]!r}.")
    # Of the files: what is loaded has the configuration's anyway.
    if (dtype := common_dtype(tensors)) != model.config.dtype:
        raise ValueError(
            f"{directory} holds {dtype}, but its config.json says {model.config.dtype}: convert it again, or correct "
            "`dtype` there."
        )
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    return f"loads without missing, unexpected or mismatched keys: {len(shapes)} tensors, {count:,} parameters"


def _verify_processor(directory: Path) -> str:
    config = AutoConfig.from_pretrained(directory)
    processor = AutoProcessor.from_pretrained(directory)
    tokenizer, size = processor.tokenizer, config.vision_config.image_size
    pairs = {
        "image token": (tokenizer.image_token_id, config.image_token_id),
        "video token": (tokenizer.video_token_id, config.video_token_id),
        "compressor_size": (processor.compressor_size, config.compressor_size),
        "resolution_ratio": (processor.image_processor.resolution_ratio, config.resolution_ratio),
        "crop height": (processor.image_processor.crop_size["height"], size),
        "padding side": (tokenizer.padding_side, "left"),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise ValueError(f"The processor in {directory} has {name} {found!r}, but the model needs {wanted!r}.")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What?"}]}]
    try:
        ids = tokenizer(processor.apply_chat_template(chat, add_generation_prompt=True)).input_ids
    except TemplateError as error:
        raise ValueError(f"The chat template can't be used ({error}): pass another with --chat-template.") from error
    if ids.count(config.image_token_id) != 1 or ids.count(config.video_token_id) != 1:
        raise ValueError(f"The chat template in {directory} does not write one placeholder an image and video.")
    return "the processor fits the model"


def _verify_values(directory: Path, intended: Tensors | None) -> list[str]:
    for name, written in read_checkpoint(directory).items():
        tensor = written.load()
        if intended is not None and not _same_bits(tensor, intended[name].load()):
            raise ValueError(f"{name} in {directory} is not what was to be written: is the disk all right?")
        if not is_finite(tensor):
            raise ValueError(f"{name} in {directory} holds NaN or infinite values, which no model should have.")
    return (
        [] if intended is None else [f"all {len(intended)} tensors are finite, and bit for bit what was to be written"]
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _verify_outputs(directory: Path, expected: Path) -> str:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    numbers = read_numbers(expected)
    apart = f"{directory} and {expected} don't belong together"
    differences = {}
    for name, inputs in golden_inputs(model, numbers).items():
        try:
            with torch.no_grad():
                logits = model(**inputs).logits
            differences[name] = (logits - numbers[f"{name}.logits"]).abs().max().item()
        except (IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"The model can't read the authors' {name} input ({error}): {apart}.") from error
        if not differences[name] <= TOLERANCE:  # also when it is no number
            raise ValueError(
                f"The {name} logits differ from the authors' by {differences[name]:.1e}, more than {TOLERANCE:.0e}: "
                f"{apart}."
            )
    return f"logits equal the authors', the largest difference being {max(differences.values()):.1e}"


def read_numbers(expected: Path) -> dict[str, torch.Tensor]:
    """
    The authors' numbers in the directory `expected`, inputs and logits of four cases.

    Raises:
        ValueError: no such file, or one without them.
    """
    numbers = {name: tensor.load() for name, tensor in read_checkpoint(expected, (EXPECTED_FILE,)).items()}
    wanted = [f"{case}.{kind}" for case in ("image", "video", "batch") for kind in ("input_ids", "images", "logits")]
    if absent := [name for name in [*wanted, "text.input_ids", "text.logits"] if name not in numbers]:
        raise ValueError(
            f"{expected / EXPECTED_FILE} lacks {absent[0]!r}: --expected takes a directory like tests/golden/standard."
        )
    return numbers


def golden_inputs(model: PreTrainedModel, numbers: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The inputs of the authors' cases "image", "video", "batch" and "text" as the model takes them."""
    config, count = model.config, model.config.num_image_tokens
    frames = numbers["video.images"].shape[1]
    return {
        "image": {
            "input_ids": expand_ids(numbers["image.input_ids"], config.image_token_id, count),
            "pixel_values": numbers["image.images"],
        },
        "video": {
            "input_ids": expand_ids(numbers["video.input_ids"], config.video_token_id, count * frames),
            "pixel_values_videos": numbers["video.images"],
        },
        "batch": {
            "input_ids": expand_ids(numbers["batch.input_ids"], config.image_token_id, count),
            "pixel_values": numbers["batch.images"],
        },
        "text": {"input_ids": numbers["text.input_ids"]},
    }


def expand_ids(input_ids: torch.Tensor, token_id: int, count: int) -> torch.Tensor:
    """The authors' ids `(B, S)` with `count` placeholders instead of their one."""
    rows = [torch.where(row == ORIGINAL_IMAGE_ID, token_id, row) for row in input_ids]
    return torch.stack([row.repeat_interleave(torch.where(row == token_id, count, 1)) for row in rows])


def main(arguments: list[str] | None = None) -> int:
    """`llava-mini verify`: runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="llava-mini verify", description="Load a converted checkpoint and check it.")
    parser.add_argument("directory", metavar="CONVERTED", help="what the converter wrote")
    parser.add_argument("--expected", metavar="DIR", help="the authors' numbers, as in tests/golden/standard")
    options = parser.parse_args(arguments)
    try:
        print("\n".join(verify(options.directory, expected=options.expected)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
