# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Turns a checkpoint of the LLaVA-Mini authors into a directory that transformers loads with its Auto classes.

    python conversion/convert_llava_mini_weights_to_hf.py INPUT OUTPUT [--vision-tower DIR_OR_REPO]

Tensors go from the input's files to the output's a shard at a time, so that a machine with far less memory than the
model can convert it. The output appears whole or not at all.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig

from llava_mini import LlavaMiniConfig, LlavaMiniProcessor
from llava_mini.conversion.hub import prepare_repository, push_to_hub, read_facts
from llava_mini.conversion.mapping.config_mapping import list_defaults
from llava_mini.conversion.mapping.model_layout import check_dtypes, check_tensors, common_dtype, expected_shapes
from llava_mini.conversion.mapping.new_parts import PREFUSION_STARTS, PrefusionStart, fill_new_parts, grow_embeddings
from llava_mini.conversion.mapping.tokenizer_conversion import (
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    convert_generation_config,
    convert_tokenizer,
)
from llava_mini.conversion.reading.checkpoint_io import (
    LazyTensor,
    Tensors,
    locate,
    write_checkpoint,
)
from llava_mini.conversion.reading.partial_checkpoints import CHECKPOINT_FILES, read_original
from llava_mini.conversion.reading.vision_tower import find_vision_tower
from llava_mini.conversion.writing.conversion_report import Report, keep_original_files
from llava_mini.conversion.writing.output_directory import atomic_directory, check_disk_space, check_no_input_is_inside
from llava_mini.conversion.writing.to_original import to_original
from llava_mini.conversion.writing.verification import read_numbers
from llava_mini.conversion.writing.verification import verify as verify_directory
from llava_mini.original_llava_mini import convert_config
from llava_mini.original_names_llava_mini import ignored_reason, rename_key
from llava_mini.original_processing_llava_mini import describe_processor
from llava_mini.original_tokenizer_llava_mini import CHAT_TEMPLATE_NAMES, choose_chat_template


# Shards are in memory one at a time; the Hub's usual 5 GB would fill a small machine.
MAX_SHARD_SIZE = "2GB"


def convert(
    input_dir: str | Path,
    output_dir: str | Path,
    vision_tower: str | None = None,
    base_model: str | None = None,
    new_prefusion: PrefusionStart | None = None,
    chat_template: str | None = None,
    verify: bool = False,
    expected: str | Path | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    show_progress: bool = False,
) -> Report:
    """
    Converts the authors' checkpoint in `input_dir`, a directory or a Hub repository; see the module.

    Args:
        vision_tower: directory or Hub repository of the CLIP tower. By default what the checkpoint's
            `mm_vision_tower` names, a relative path being relative to the checkpoint.
        base_model: directory or Hub repository of the base model of a partial checkpoint (`mm_projector.bin` or
            LoRA). By default the one that a LoRA adapter names.
        new_prefusion: for models without compressor and pre-fusion: how new pre-fusion layers start.
        chat_template: `"llama3"`, `"vicuna_v1"` or a Jinja file. By default the one whose tokens the tokenizer has.
        verify: load the result with the Auto classes and compare it with what was to be written, before it appears.
        expected: directory of the authors' numbers for this checkpoint, to verify the outputs too.
        overwrite: replace `output_dir` if there is something in it.
        max_shard_size: upper bound of an output file, and so of what is in memory at a time.
        show_progress: whether to draw a progress bar.

    Returns:
        What became of every tensor.

    Raises:
        ValueError: unusable input or output, or a result that does not verify; the message says what to do. Nothing
            is written in that case.
    """
    output = Path(output_dir).resolve()
    if expected:
        read_numbers(Path(expected))  # so that an unusable directory is told now, not after minutes
    check_no_input_is_inside(output, [path for path in (Path(input_dir),) if path.is_dir()])
    with atomic_directory(output, overwrite) as folder:
        source = locate(str(input_dir), Path(), CHECKPOINT_FILES, "give the authors' checkpoint")
        plan = plan_conversion(source, vision_tower, base_model, new_prefusion, chat_template, folder)
        check_no_input_is_inside(output, plan.sources)
        check_disk_space(output, plan.tensors)
        plan.processor.save_pretrained(folder)
        plan.generation_config.save_pretrained(folder)
        plan.report.not_finite = write_checkpoint(plan.tensors, folder, max_shard_size, show_progress)
        keep_original_files(source, plan.tokenizer_dir, folder, plan.report)
        plan.config.save_pretrained(folder)  # last, since no directory loads without it
        if verify or expected:
            plan.report.verified = verify_directory(folder, plan.tensors, expected)
    return plan.report


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that a conversion writes; the tensors are yet to be read."""

    tensors: Tensors
    config: LlavaMiniConfig
    processor: LlavaMiniProcessor
    generation_config: GenerationConfig
    tokenizer_dir: Path
    sources: tuple[Path, ...]
    report: Report


def plan_conversion(
    source: Path,
    vision_tower: str | None,
    base_model: str | None,
    new_prefusion: PrefusionStart | None,
    chat_template: str | None,
    workplace: Path,
) -> ConversionPlan:
    """
    Reads the small files and the tensors' names and shapes; the arguments are those of `convert`.

    Args:
        workplace: directory for temporary files, which a killed run's successor cleans up.

    Raises:
        ValueError: what there is does not make a model.
    """
    original = read_original(source, base_model)
    tower = find_vision_tower(source, original.config, original.tensors, vision_tower)
    tokenizer, placed = convert_tokenizer(original.tokenizer_dir, workplace)
    generation_config, inert = convert_generation_config(source, original.config, tokenizer)
    template = choose_chat_template(chat_template, tokenizer, original.config)

    report = Report(ignored=original.ignored | tower.ignored)
    report.ignored |= {f"generation_config {name}": "sampling is off" for name in inert}
    report.filled |= {f"config {k}": f"the authors' default, {v!r}" for k, v in list_defaults(original.config).items()}
    report.filled |= {token: f"id {place.token_id}, {place.origin}" for token, place in placed.items()}
    labels = original.labels | {key: f"{tower.origin}: {key}" for key in tower.tensors}
    targets = rename_tensors(original.tensors | tower.tensors, labels, report)
    check_dtypes(targets)
    config = convert_config(
        original.config, tower.config, placed[IMAGE_TOKEN].token_id, placed[VIDEO_TOKEN].token_id, common_dtype(targets)
    )
    shapes = expected_shapes(config)
    if new_prefusion:
        fill_new_parts(targets, shapes, config, new_prefusion, report)
    if config.tie_word_embeddings and targets.pop("lm_head.weight", None):
        report.ignored["lm_head.weight"] = "tied to the embeddings"
    check_tensors(targets, shapes)
    grow_embeddings(targets, config, report)
    parts = describe_processor(config, original.config, tokenizer, tower.preprocessor, template)
    processor = LlavaMiniProcessor.from_original(parts)
    config.update(processor.find_turn_headers())
    sources = original.directories if tower.directory is None else (*original.directories, tower.directory)
    return ConversionPlan(targets, config, processor, generation_config, original.tokenizer_dir, sources, report)


def rename_tensors(tensors: Tensors, labels: dict[str, str], report: Report) -> Tensors:
    """
    The tensors under our names, packed ones split; entered in the report.

    Args:
        labels: what to call tensors in the report, where it is not their name.

    Raises:
        ValueError: names that no LLaVA-Mini checkpoint has.
    """
    targets: Tensors = {}
    unknown = []
    for key, tensor in tensors.items():
        if reason := ignored_reason(key):
            report.ignored[labels.get(key, key)] = reason
            continue
        names = rename_key(key)
        if not names:
            unknown.append(key)
            continue
        report.used[labels.get(key, key)] = names
        targets |= zip(names, split_rows(tensor, len(names)))
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensor(s) have unexpected names, such as {unknown[0]!r}: this is no LLaVA-Mini "
            "checkpoint, or one with parts that this converter does not know."
        )
    return targets


def split_rows(tensor: LazyTensor, parts: int) -> list[LazyTensor]:
    """`parts` equal pieces; rows too many stay with the last one, whose shape then is wrong."""
    if parts == 1 or not tensor.shape:
        return [tensor] * parts
    size = tensor.shape[0] // parts
    ends = [size * i for i in range(1, parts)] + [tensor.shape[0]]
    return [tensor.rows(start, end) for start, end in zip([0, *ends], ends)]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        # Read first: a conversion takes minutes.
        facts = read_facts(options.push_to_hub, options.card_facts) if options.push_to_hub else None
        print(run(options))
        print(f"Wrote {options.output}")
        if facts:
            prepare_repository(options.output, options.push_to_hub, facts)
            print(f"Uploaded: {push_to_hub(options.output, options.push_to_hub)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> Report:
    """Converts, or goes back, as the command line says."""
    common = {
        "vision_tower": options.vision_tower,
        "overwrite": options.overwrite,
        "max_shard_size": options.max_shard_size,
        "show_progress": True,
    }
    if options.to_original:
        return to_original(options.input, options.output, **common)
    return convert(
        options.input,
        options.output,
        base_model=options.base_model,
        new_prefusion=options.new_prefusion,
        chat_template=options.chat_template,
        verify=options.verify,
        expected=options.expected,
        **common,
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options; exits with code 2 for those that don't go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="the authors' checkpoint, a directory or a Hub repository")
    parser.add_argument("output", metavar="OUTPUT", help="directory to write")
    parser.add_argument("--vision-tower", metavar="DIR_OR_REPO", help="CLIP tower, instead of `mm_vision_tower`")
    parser.add_argument("--base-model", metavar="DIR_OR_REPO", help="what mm_projector.bin or LoRA was trained on")
    parser.add_argument(
        "--new-prefusion",
        choices=PREFUSION_STARTS,
        help="give a model without compressor and pre-fusion new ones, the pre-fusion layers starting like this",
    )
    parser.add_argument(
        "--chat-template",
        metavar="|".join((*CHAT_TEMPLATE_NAMES, "FILE")),
        help="how a chat is written; by default as the tokenizer's special tokens suggest",
    )
    parser.add_argument("--verify", action="store_true", help="load the result and compare it with the input")
    parser.add_argument(
        "--expected", metavar="DIR", help="compare with the authors' numbers too, as in tests/golden/standard"
    )
    parser.add_argument(
        "--to-original", action="store_true", help="the other way: INPUT is a converted or fine-tuned model"
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload the result, with its code and a model card")
    parser.add_argument("--card-facts", type=Path, metavar="FILE", help="what the card says, see model_cards/")
    parser.add_argument("--max-shard-size", default=MAX_SHARD_SIZE, metavar="SIZE", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if there is something in it")
    options = parser.parse_args(arguments)
    for name in ("base_model", "new_prefusion", "chat_template", "verify", "expected", "push_to_hub"):
        if options.to_original and getattr(options, name):
            parser.error(f"--{name.replace('_', '-')} is for converting, not for --to-original")
    if options.card_facts and not options.push_to_hub:
        parser.error("--card-facts is for --push-to-hub")
    return options


if __name__ == "__main__":
    sys.exit(main())
