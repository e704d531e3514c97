# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
A converted or fine-tuned model back to the authors' layout.

    python conversion/convert_llava_mini_weights_to_hf.py MODEL OUTPUT --to-original

A directory that the converter wrote goes back bit by bit. One written by `save_pretrained` holds the tower only up to
the layer that the model reads, and nothing of the authors' small files: the rest of the tower comes from
`--vision-tower`, or the tower is left out and named for the authors' code to fetch.
"""

import shutil
from pathlib import Path

import torch

from llava_mini import LlavaMiniConfig
from llava_mini.configuration_llava_mini import DEFAULT_VISION_CONFIG
from llava_mini.conversion.mapping.config_mapping import restore_config
from llava_mini.conversion.mapping.key_mapping import ORIGINAL_TOWER, TOWER
from llava_mini.conversion.mapping.model_layout import check_dtypes, check_tensors, expected_shapes
from llava_mini.conversion.mapping.new_parts import EMBEDDINGS
from llava_mini.conversion.mapping.tokenizer_conversion import TOKENIZER_FILES, write_for_transformers_4
from llava_mini.conversion.reading.checkpoint_io import (
    LazyTensor,
    Tensors,
    find_local,
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)
from llava_mini.conversion.reading.vision_tower import read_vision_tower
from llava_mini.conversion.writing.conversion_report import ORIGINAL_FOLDER, REPORT_FILE, Report
from llava_mini.conversion.writing.output_directory import atomic_directory, check_disk_space, check_no_input_is_inside
from llava_mini.original_names_llava_mini import rename_key, restore_key


# The tower of the authors' releases, which DEFAULT_VISION_CONFIG describes.
DEFAULT_TOWER_NAME = "openai/clip-vit-large-patch14-336"


def to_original(
    model_dir: str | Path,
    output_dir: str | Path,
    vision_tower: str | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    show_progress: bool = False,
) -> Report:
    """
    Writes the model in `model_dir` in the authors' layout; see the module.

    Args:
        vision_tower: what `mm_vision_tower` shall say, and where layers of the tower come from that the model does
            not hold. By default what the authors' configuration said, or the releases' CLIP if the tower has its
            shape.
        overwrite: replace `output_dir` if there is something in it.

    Returns:
        What became of every tensor.

    Raises:
        ValueError: unusable input or output; the message says what to do. Nothing is written in that case.
    """
    source, output = Path(model_dir), Path(output_dir).resolve()
    check_no_input_is_inside(output, [source])
    with atomic_directory(output, overwrite) as folder:
        config = _read_config(source)
        tensors = read_checkpoint(source)
        kept = source / ORIGINAL_FOLDER
        known = read_json(kept / "config.json") if kept.is_dir() else {}
        report = Report()

        tower_name = vision_tower or known.get("mm_vision_tower") or _default_tower_name(config)
        _drop_added_rows(tensors, config, known, report)
        expected = expected_shapes(config)
        _settle_tower(tensors, expected, source, tower_name, fetch=vision_tower is not None, report=report)
        check_tensors(tensors, expected)
        check_dtypes(tensors)
        original_config = restore_config(config, known) | {"mm_vision_tower": tower_name}
        original_config["image_aspect_ratio"] = _image_aspect_ratio(source, known)
        if config.prefusion_ignored_token_ids != [0]:
            report.ignored["config prefusion_ignored_token_ids"] = (
                f"it is {config.prefusion_ignored_token_ids}, but the authors' code always leaves out id 0, "
                "so that it computes something else for prompts with that token"
            )
        originals = restore_tensors(tensors, original_config["mm_projector_type"], report)

        tower_dir = find_local(tower_name, source)
        check_no_input_is_inside(output, [source] if tower_dir is None else [source, tower_dir])
        check_disk_space(output, originals)
        _write_small_files(source, kept, folder)
        report.not_finite = write_checkpoint(originals, folder, max_shard_size, show_progress)
        write_json(folder / "config.json", original_config)  # last, since no directory loads without it
    return report


def _read_config(directory: Path) -> LlavaMiniConfig:
    values = read_json(directory / "config.json")
    if values.get("model_type") != LlavaMiniConfig.model_type:
        raise ValueError(
            f"{directory} holds a model of type {values.get('model_type')!r}, but only {LlavaMiniConfig.model_type!r} "
            "can go back to the authors' layout: give a converted or fine-tuned model."
        )
    try:
        return LlavaMiniConfig.from_pretrained(directory)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'} is not valid. {error}") from error


def _default_tower_name(config: LlavaMiniConfig) -> str:
    if all(getattr(config.vision_config, key) == value for key, value in DEFAULT_VISION_CONFIG.items()):
        return DEFAULT_TOWER_NAME
    raise ValueError(
        "The model doesn't say where its vision tower came from, which the authors' code wants to know: name it with "
        "--vision-tower DIR_OR_REPO."
    )


def _drop_added_rows(tensors: Tensors, config: LlavaMiniConfig, known: dict, report: Report) -> None:
    size = known.get("vocab_size", config.text_config.vocab_size)
    if size >= config.text_config.vocab_size:
        return
    for name in EMBEDDINGS:
        if name in tensors:
            report.ignored[f"{name} rows {size} to {tensors[name].shape[0] - 1}"] = "added by the conversion"
            tensors[name] = tensors[name].rows(0, size)
    config.text_config.vocab_size = size


def _settle_tower(
    tensors: Tensors,
    expected: dict[str, tuple[int, ...]],
    source: Path,
    tower_name: str,
    fetch: bool,
    report: Report,
) -> None:
    """Makes the tower whole, or takes it out of `tensors` and `expected`."""
    missing = [name for name in expected if name.startswith(TOWER) and name not in tensors]
    if missing and fetch:
        tower = read_vision_tower(tower_name, source)
        for key, tensor in tower.tensors.items():
            (name,) = rename_key(key) or ("",)
            if name in missing:
                tensors[name] = tensor
                report.filled[name] = f"from {tower_name}"
        return
    if not missing and not _tower_was_beside(source):
        return
    _check_tower_unchanged(tensors, source, tower_name)
    why = "some of its layers are not in the model" if missing else "it was not in the authors' checkpoint either"
    for name in [name for name in expected if name.startswith(TOWER)]:
        del expected[name]
        if tensors.pop(name, None):
            report.ignored[name] = f"the tower is left out, since {why}; the authors' code takes it from {tower_name}"


def _tower_was_beside(source: Path) -> bool:
    report = source / ORIGINAL_FOLDER / REPORT_FILE
    return report.is_file() and not any(key.startswith(ORIGINAL_TOWER) for key in read_json(report)["used"])


def _check_tower_unchanged(tensors: Tensors, source: Path, tower_name: str) -> None:
    """A tower that was trained can't be left out. That a tower on the Hub is the same has to be believed."""
    if not find_local(tower_name, source):
        return
    for key, tensor in read_vision_tower(tower_name, source).tensors.items():
        name = next(iter(rename_key(key)), None)
        if name in tensors and not torch.equal(tensor.load().to(tensors[name].dtype), tensors[name].load()):
            raise ValueError(
                f"The model's vision tower is not the one in {tower_name} ({name} differs), so it can't be left out: "
                "pass the tower it was trained from with --vision-tower."
            )


def restore_tensors(tensors: Tensors, projector_type: str, report: Report) -> Tensors:
    """The tensors under the authors' names, the compressor's projections packed; entered in the report."""
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(restore_key(name, projector_type), {})[name] = tensor
    originals: Tensors = {}
    for key, named in parts.items():
        pieces = [named[name] for name in rename_key(key)]
        originals[key] = pieces[0] if len(pieces) == 1 else concatenate(pieces)
        report.used |= dict.fromkeys(named, (key,))
    return originals


def concatenate(pieces: list[LazyTensor]) -> LazyTensor:
    """The rows of all pieces."""
    shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
    return LazyTensor(shape, pieces[0].dtype, lambda: torch.cat([piece.load() for piece in pieces]))


def _image_aspect_ratio(source: Path, known: dict) -> str | None:
    path = source / "processor_config.json"
    does_pad = read_json(path)["image_processor"]["do_pad"] if path.is_file() else True
    if known and (known.get("image_aspect_ratio") == "pad") == does_pad:
        return known.get("image_aspect_ratio")
    return "pad" if does_pad else "square"


def _write_small_files(source: Path, kept: Path, output: Path) -> None:
    if kept.is_dir():
        for path in kept.iterdir():
            if path.name not in ("config.json", REPORT_FILE):
                shutil.copyfile(path, output / path.name)
        return
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    write_for_transformers_4(output)
