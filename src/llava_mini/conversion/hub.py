# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
A converted checkpoint as a Hub repository: weights, processor, a model card filled from the configuration, and the
model code, so that `trust_remote_code=True` is all that others need.

    llava-mini push CONVERTED REPOSITORY [--facts FILE] [--results FILE] [--private]
"""

import argparse
import json
import logging
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

import llava_mini
from llava_mini import LlavaMiniConfig
from llava_mini.conversion.card_results import add_results, read_results
from llava_mini.conversion.mapping.model_layout import common_dtype
from llava_mini.conversion.reading.checkpoint_io import read_checkpoint, read_json, write_json


logger = logging.getLogger(__name__)

CARD_TEMPLATE = Path(__file__).with_name("card_template.md")
# The files that travel: model, processors, and what they import.
CODE_FILES = (
    "compressor_llava_mini.py",
    "configuration_llava_mini.py",
    "front_llava_mini.py",
    "generation_llava_mini.py",
    "image_processing_llava_mini.py",
    "image_processing_pil_llava_mini.py",
    "image_reading_llava_mini.py",
    "input_checks_llava_mini.py",
    "modeling_llava_mini.py",
    "original_llava_mini.py",
    "original_names_llava_mini.py",
    "original_processing_llava_mini.py",
    "original_tokenizer_llava_mini.py",
    "outputs_llava_mini.py",
    "patch_budget_llava_mini.py",
    "placeholders_llava_mini.py",
    "prefusion_llava_mini.py",
    "pretrained_llava_mini.py",
    "processing_llava_mini.py",
    "turn_headers_llava_mini.py",
    "versions_llava_mini.py",
    "video_processing_llava_mini.py",
    "video_reading_llava_mini.py",
    "video_survey_llava_mini.py",
    "vision_context_llava_mini.py",
    "visuals_llava_mini.py",
)
MODEL_CODE = {
    "AutoConfig": "configuration_llava_mini.LlavaMiniConfig",
    "AutoModel": "modeling_llava_mini.LlavaMiniModel",
    "AutoModelForImageTextToText": "modeling_llava_mini.LlavaMiniForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_llava_mini.LlavaMiniForConditionalGeneration",
}
PROCESSOR_CODE = {"AutoProcessor": "processing_llava_mini.LlavaMiniProcessor"}
IMAGE_PROCESSOR_CODE = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_llava_mini.LlavaMiniImageProcessor",
        "pil": "image_processing_pil_llava_mini.LlavaMiniImageProcessorPil",
    }
}
VIDEO_PROCESSOR_CODE = {"AutoVideoProcessor": "video_processing_llava_mini.LlavaMiniVideoProcessor"}


@dataclass
class CardFacts:
    """
    What a model card says beyond the configuration.

    Args:
        title, introduction, license: of the checkpoint.
        reproduction: markdown list of what is and isn't reproduced, beyond the computation.
        licences: markdown list of the parts' licences.
        base_model: Hub repository of the language model, if there is one.
        image: a picture for the snippet.
    """

    title: str
    introduction: str = "A LLaVA-Mini checkpoint (arXiv 2501.03895) converted to Hugging Face transformers."
    license: str = "other"
    reproduction: str = ""
    licences: str = "See the checkpoint that this one was converted from."
    base_model: str | None = None
    image: str = "picture.png"


def read_facts(repository: str, path: Path | None) -> CardFacts:
    """
    What the card of `repository` says: the JSON file at `path`, or the repository's name alone.

    Raises:
        ValueError: the file says something that no card has, or lacks the title; or no repository can have this name.
    """
    validate_repo_id(repository)
    if path is None:
        return CardFacts(title=repository.split("/")[-1])
    try:
        return CardFacts(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no model card ({error}): see those in model_cards/.") from error


def count_weights(folder: Path) -> tuple[int, int]:
    """Parameters and bytes of the weight files."""
    parameters = 0
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file handle, no mapping)
                parameters += math.prod(file.get_slice(name).get_shape())
    return parameters, sum(path.stat().st_size for path in files)


def make_model_card(folder: Path, repository: str, facts: CardFacts) -> str:
    """The model card of a converted checkpoint, from `card_template.md`."""
    config = LlavaMiniConfig.from_pretrained(folder)
    parameters, size = count_weights(folder)
    text, vision = config.text_config, config.vision_config
    return CARD_TEMPLATE.read_text(encoding="utf-8").format(
        **{name: value for name, value in vars(facts).items() if name != "base_model"},
        base_model_lines=f"base_model: {facts.base_model}\n" if facts.base_model else "",
        repository=repository,
        text_model_type=text.model_type,
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        vocabulary=f"{text.vocab_size:,}",
        vision_model_type=vision.model_type,
        vision_layers=config.num_vision_layers,
        vision_width=vision.hidden_size,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        num_image_tokens=config.num_image_tokens,
        compressor_size=config.compressor_size,
        num_crops=config.num_crops,
        resolution_ratio=config.resolution_ratio,
        num_prefusion_layers=config.num_prefusion_layers,
        parameters=f"{parameters:,}",
        dtype=str(common_dtype(read_checkpoint(folder))).removeprefix("torch."),
        gigabytes=f"{size / 1e9:.3g}",
    )


def prepare_repository(folder: str | Path, repository: str, facts: CardFacts, replace_card: bool = False) -> Path:
    """
    Adds code, `auto_map` entries and a model card to a converted checkpoint, in place.

    Args:
        replace_card: write the card anew where there is one; without it that one is kept, and this logged.

    Raises:
        ValueError: `folder` holds no converted checkpoint.
    """
    folder = Path(folder)
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: pass a directory that the converter or save_pretrained wrote.")
    package = Path(llava_mini.__file__).parent
    for name in CODE_FILES:
        shutil.copyfile(package / name, folder / name)
    _edit(folder / "config.json", lambda values: values | {"auto_map": MODEL_CODE})

    def add_code(values: dict) -> dict:
        values["auto_map"] = PROCESSOR_CODE
        values["image_processor"]["auto_map"] = IMAGE_PROCESSOR_CODE
        values["video_processor"]["auto_map"] = VIDEO_PROCESSOR_CODE
        return values

    _edit(folder / "processor_config.json", add_code)
    card = folder / "README.md"
    if card.exists() and not replace_card:
        logger.warning("%s is kept as it is: --replace-card writes another in its place.", card)
    else:
        card.write_text(make_model_card(folder, repository, facts), encoding="utf-8")
    return folder


def _edit(path: Path, change) -> None:
    write_json(path, change(read_json(path)))


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """
    Uploads a prepared folder.

    Returns:
        The commit's address.

    Raises:
        ValueError: the Hub refuses, or can't be reached; the message says what it said.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="LLaVA-Mini, converted")
    except HfHubHTTPError as error:
        what_it_said = " ".join(str(error).split())
        raise ValueError(
            f"The Hub refuses {repository}: {what_it_said}. Log in with `hf auth login`, with a token that may write "
            "there."
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"The Hub can't be reached ({error}): upload {folder} later with `llava-mini push`."
        ) from error
    return str(commit)


def main(argv: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a converted checkpoint")
    parser.add_argument("repository", help="such as your-name/llava-mini-llama-3.1-8b")
    parser.add_argument("--facts", type=Path, help="JSON file of what the card says, such as those in model_cards/")
    parser.add_argument("--results", type=Path, help="results.json of `llava-mini evaluate`, for the card")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--replace-card", action="store_true", help="write README.md anew; without it one is kept")
    parser.add_argument("--prepare-only", action="store_true", help="write code and card, upload nothing")
    arguments = parser.parse_args(argv)
    try:
        facts = read_facts(arguments.repository, arguments.facts)
        measured = read_results(arguments.results) if arguments.results else None
        prepare_repository(arguments.folder, arguments.repository, facts, arguments.replace_card)
        if measured:
            card = arguments.folder / "README.md"
            card.write_text(add_results(card.read_text(encoding="utf-8"), facts.title, *measured), encoding="utf-8")
        if arguments.prepare_only:
            print(f"Prepared {arguments.folder}: README.md, {len(CODE_FILES)} files of code and where to find it.")
        else:
            print(push_to_hub(arguments.folder, arguments.repository, arguments.private))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
