# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""`llava-mini demo`: a page in the browser, in one process."""

import argparse
import importlib.metadata
import os
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from llava_mini.cli_arguments import positive
from llava_mini.demo.limits import Limits, upload_size


logger = logging.get_logger(__name__)

PACKAGE = "llava-mini-hf"
# Where the small model lies: in a checkout of the sources, and where a wheel puts it.
IN_CHECKOUT, IN_WHEEL = Path(__file__).parents[3] / "examples" / "tiny" / "checkpoint", "llava-mini-hf/small-model"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_PORT = 65535


def add_demo_arguments(parser: argparse.ArgumentParser):
    """The options of `llava-mini demo` that are not about loading the model."""
    defaults = Limits()
    parser.add_argument("--model", help="directory or Hub repository of a checkpoint (default: a small one to try)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: this machine alone)")
    parser.add_argument("--port", type=port_number, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="a public address through gradio's servers")
    parser.add_argument(
        "--max-upload-size",
        type=upload_size,
        default=defaults.max_upload_size,
        metavar="SIZE",
        help="of a file, such as 500kb or 1gb (default: %(default)s)",
    )
    for name, help in (
        ("max-files", "pictures and clips of a question"),
        ("max-frames", "frames taken from the clips of a question"),
        ("max-characters", "of a question, and of the system message"),
        ("max-new-tokens", "of an answer, that a visitor may ask for"),
        ("queue-size", "questions that may wait"),
    ):
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=positive(int), default=default, help=f"{help} (default: %(default)s)")


def port_number(value: str) -> int:
    """A TCP port."""
    if not 0 < (number := int(value)) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{value} is not from 1 to {MAX_PORT}")
    return number


def check_gradio():
    """
    Raises:
        ImportError: there is no gradio.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"The demo needs gradio ({error}): `pip install 'llava-mini-hf[demo]'`.") from error


def find_small_model() -> str | None:
    """The directory of the small model that the demo starts with, if it is here."""
    if (IN_CHECKOUT / "config.json").is_file():
        return str(IN_CHECKOUT)
    try:
        installed = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    for file in installed:
        if file.as_posix().endswith(f"{IN_WHEEL}/config.json"):
            return str(Path(file.locate()).resolve().parent)
    return None


def run_demo(model: PreTrainedModel, processor: ProcessorMixin, arguments: argparse.Namespace, **launching):
    """
    Serves the page until the process is interrupted.

    Args:
        model, processor: loaded.
        arguments: see `add_demo_arguments`.
        launching: for gradio's `launch`.
    """
    # Not at the top: gradio takes a second to import, and the folders have to be known before.
    with tempfile.TemporaryDirectory(prefix="llava-mini-demo-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        uploads, views, drawn = root / "uploads", root / "views", root / "examples"
        uploads.mkdir()
        before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")}
        # Gradio serves both; the default of the second lies in the folder that the command was started in.
        os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_EXAMPLES_CACHE": str(uploads / "examples")}
        try:
            from llava_mini.demo.answering import Answerer
            from llava_mini.demo.app import Page, launch
            from llava_mini.demo.examples import write_examples
            from llava_mini.demo.session import Sessions

            names = ("max_upload_size", "max_files", "max_frames", "max_characters", "max_new_tokens", "queue_size")
            limits = Limits(**{name: getattr(arguments, name) for name in names})
            if arguments.host not in LOOPBACK:
                logger.warning(f"Anybody who can reach {arguments.host} may use this page and the model behind it.")
            views.mkdir()
            sessions = Sessions(views, uploads, limits)
            name, is_small = arguments.model, arguments.model == find_small_model()
            if Path(name).is_dir():
                name = "the small model of the examples" if is_small else Path(name).resolve().name
            examples = write_examples(drawn, arguments.model)
            answerer = Answerer(model, processor, limits)
            answerer.warm_up()
            # The small model was trained on single questions.
            page = Page(answerer, sessions, examples, name, remembers=not is_small).build()
            launch(page, arguments.host, arguments.port, arguments.share, limits.max_upload_size, **launching)
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
