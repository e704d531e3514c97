# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Our options and transformers' in one command, and the place where our guard is put around its application.

Everything that we take from `transformers serve` is here and in `chat.py`, and is the same in 5.18 to 5.24:

- `Serve.__init__` has the options, loads the checkpoint, imports `build_server` when it runs, calls it with the model
  manager and the chat handler first and the rest by name (from 5.19 on one handler more), and gives what it returns to
  uvicorn;
- the application answers /health and closes the model manager at the end (`lifespan`);
- `ChatCompletionHandler._build_generation_config` turns a request's sampling options into a `GenerationConfig`.

What differs between the versions we do ourselves: 5.18 to 5.22 list the Hub's cache as /v1/models instead of the served
model, ignore `max_completion_tokens`, and take other arguments for the answer's parts.
"""

import inspect
from dataclasses import fields
from typing import Any

import typer
from transformers.cli import serve as transformers_serve
from transformers.cli.serving import server as transformers_server
from transformers.utils import logging

from llava_mini import LlavaMiniConfig
from llava_mini.serving.application import GuardedApplication, is_loopback
from llava_mini.serving.chat import ChatCompletions
from llava_mini.serving.settings import Settings


logger = logging.get_logger(__name__)

HELP = """
Serve a converted LLaVA-Mini checkpoint over HTTP, in OpenAI's protocol.

\b
Endpoints:
    POST /v1/chat/completions: text, images and videos to an answer, whole or streamed
    GET  /v1/models: the served checkpoint
    GET  /health

By default only this machine reaches it, and requests bring their images and videos along as data URLs.
"""


def run(options: list[str]):
    """Parses the options, loads the checkpoint and serves it until the process ends."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP)(_merged_command())
    app(args=options, prog_name="llava-mini serve")


def _merged_command():
    """A function with the options of `transformers serve` and ours, as typer reads them from its signature."""

    def command(**options):
        settings = Settings(**{field.name: options.pop(field.name) for field in fields(Settings)})
        serve_guarded(options, settings)

    theirs = dict(inspect.signature(transformers_serve.Serve).parameters)
    # Without a checkpoint upstream loads whatever a request names.
    theirs["force_model"] = theirs["force_model"].replace(default=inspect.Parameter.empty)
    parameters = [*inspect.signature(Settings).parameters.values(), *theirs.values()]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def serve_guarded(options: dict[str, Any], settings: Settings):
    """
    Runs transformers' server with our application in front of its own.

    Args:
        options (`dict`): of `transformers.cli.serve.Serve`.
        settings (`Settings`): ours.
    """
    build_server = transformers_server.build_server

    def build_guarded_server(model_manager, chat_handler, enable_cors: bool = False, **handlers):
        application = build_server(model_manager, chat_handler, **handlers)
        model, processor = model_manager.load_model_and_processor(
            model_manager.process_model_name(options["force_model"])
        )
        if model.config.model_type != LlavaMiniConfig.model_type:
            raise ValueError(
                f"{options['force_model']} is a {model.config.model_type}, and this serves LLaVA-Mini. Use "
                "`transformers serve`."
            )
        if settings.api_key is None and not is_loopback(options["host"]):
            logger.warning(f"Anybody who can reach {options['host']} may ask this server. Set --api-key.")
        chat = ChatCompletions(options["force_model"], model, processor, chat_handler, settings)
        guarded = GuardedApplication(application, chat, settings, host=options["host"], any_origin=enable_cors)
        return _with_cors(guarded) if enable_cors else guarded

    transformers_server.build_server = build_guarded_server
    try:
        transformers_serve.Serve(**options)
    finally:
        transformers_server.build_server = build_server


def _with_cors(application):
    # Around ours, so that refusals are readable for pages as well.
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(application, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
