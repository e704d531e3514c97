# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""`llava-mini serve --engine vllm`: vLLM's own server, set to what LLaVA-Mini needs and a stranger may do."""

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec

from transformers import PreTrainedConfig

from llava_mini.cli_arguments import check_model
from llava_mini.configuration_llava_mini import ORIGINAL_MODEL_TYPE, LlavaMiniConfig
from llava_mini.vllm.plugin import NAME


# Options of `vllm serve` that are ours unless they are given.
DEFAULTS = {
    "--host": "127.0.0.1",
    # Enough for a conversation, and few enough that one request does not keep all others waiting.
    "--limit-mm-per-prompt": '{"image": 16, "video": 4}',
    # No host has a name under .invalid (RFC 2606): requests bring pictures and videos along as data URLs.
    "--allowed-media-domains": "data-urls-only.invalid",
}
# An allowed address leads nowhere else.
ENVIRONMENT = {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}


def serve_vllm(options: Sequence[str]) -> None:
    """
    Runs `vllm serve` with LLaVA-Mini among the models it knows; ends with the process.

    Args:
        options (`list[str]`): as for `vllm serve`: a checkpoint, `--port`, `--tensor-parallel-size`, ...

    Raises:
        ImportError: vLLM or our entry point is missing.
        ValueError: the plugin is switched off, or the checkpoint is no LLaVA-Mini.
    """
    check_installation()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Not at the top: only who serves with vLLM has it.
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="llava-mini")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(["serve", *complete(options)])
    configure_logging_from_args(arguments)
    command.validate(arguments)
    check_checkpoint(arguments.model_tag or arguments.model, arguments.revision)
    command.cmd(arguments)


def complete(options: Sequence[str]) -> list[str]:
    """The options, and behind them the defaults of those that are not given."""
    given = {option.partition("=")[0].replace("_", "-") for option in options}
    added = [word for name, value in DEFAULTS.items() if name not in given for word in (name, value)]
    return [*options, *added]


def check_installation() -> None:
    """
    Raises:
        ImportError: vLLM or our entry point is missing.
        ValueError: the plugin is switched off.
    """
    if find_spec("vllm") is None:
        raise ImportError("This engine needs vLLM: `pip install 'llava-mini-hf[vllm]'`.")
    if NAME not in {point.name for point in entry_points(group="vllm.general_plugins")}:
        raise ImportError("vLLM finds its plugins among installed packages: `pip install llava-mini-hf`.")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        raise ValueError(f"VLLM_PLUGINS is {allowed!r} and leaves out {NAME!r}: add it, or unset the variable.")


def check_checkpoint(name: str, revision: str | None) -> None:
    """
    Raises:
        ValueError: there is no such checkpoint, or it is another model's.
    """
    check_model(name)
    values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    kind = values.get("model_type")
    if kind not in (LlavaMiniConfig.model_type, ORIGINAL_MODEL_TYPE):
        raise ValueError(f"{name} is a {kind}, and this serves LLaVA-Mini. Use `vllm serve`.")
