# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""`llava-mini serve`: transformers' own server, behind a guard that trusts nobody; or vLLM's."""

import argparse
from collections.abc import Sequence

from transformers.models.auto import modeling_auto
from transformers.utils.import_utils import is_serve_available

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration


def add_serve_parser(commands: argparse._SubParsersAction):
    """Adds `serve` to a command line; its options are those of the engine's server, parsed there."""
    text = "serve a converted checkpoint over HTTP (OpenAI's protocol)"
    # No character starts an option here, so that all of them, --help included, get through.
    command = commands.add_parser("serve", help=text, add_help=False, prefix_chars=" ")
    command.add_argument("options", nargs=argparse.REMAINDER)
    command.set_defaults(function=lambda arguments: serve_with_engine(arguments.options))


def serve_with_engine(options: Sequence[str]):
    """Takes `--engine` out of the options and hands the rest to the server that it names."""
    parser = argparse.ArgumentParser(prog="llava-mini serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    chosen, rest = parser.parse_known_args(options)
    if chosen.engine == "transformers":
        return serve(rest)
    # Not at the top: nothing of vLLM is imported unless it is asked for.
    from llava_mini.vllm.serve import serve_vllm

    return serve_vllm(rest)


def serve(options: Sequence[str]):
    """
    Runs `transformers serve` with LLaVA-Mini among the models it knows and our guard in front; ends with the process.

    Args:
        options (`list[str]`): a checkpoint, our options (see `Settings`) and those of `transformers serve`.

    Raises:
        ImportError: the server's packages are missing.
        ValueError: the checkpoint is no LLaVA-Mini, or an option makes no sense.
    """
    if not is_serve_available():
        raise ImportError("The server needs more packages: `pip install 'llava-mini-hf[serve]'`.")
    # Not at the top: the command line would take longer to start for `ask` as well.
    try:
        from llava_mini.serving.command import run
    except ModuleNotFoundError as error:
        raise ImportError(f"The server needs {error.name} too: `pip install 'llava-mini-hf[serve]'`.") from error

    register()
    run(list(options))


def register():
    """Puts our class where the server looks up what a model can do; the Auto classes know it already."""
    for names in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):
        names[LlavaMiniConfig.model_type] = LlavaMiniForConditionalGeneration.__name__
