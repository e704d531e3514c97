# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What the command line's arguments may be; a wrong one is told before anything is loaded."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def one_line(error: BaseException) -> str:
    """An error's words without line breaks, or its kind when it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def positive(kind: type) -> Callable[[str], float]:
    """A reader of numbers above 0."""

    def read(value: str) -> float:
        number = kind(value)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{value} is not above 0")
        return number

    read.__name__ = kind.__name__  # what argparse calls it when it is no number at all
    return read


def at_least_0(value: str) -> float:
    """A finite number of at least 0."""
    if not 0 <= (number := float(value)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not 0 or above")
    return number


def share(value: str) -> float:
    """A number above 0 and up to 1."""
    if not 0 < (number := float(value)) <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return number


def open_share(value: str) -> float:
    """A number above 0 and below 1."""
    if not 0 < (number := float(value)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and below 1")
    return number


def seed_number(value: str) -> int:
    """What torch takes as a seed."""
    if not 0 <= (number := int(value)) < 2**64:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 2**64 - 1")
    return number


def utf8_text(value: str) -> str:
    """Something that can be written as UTF-8; terminals hand over any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("the text is no valid UTF-8: check the terminal's encoding") from error
    return value


def usable_device(value: str) -> str:
    """A device that computes here, or auto."""
    if value == "auto":
        return value
    try:
        if torch.device(value).type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(1, device=value).item()
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        usable = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise argparse.ArgumentTypeError(f"{value} can't be used ({one_line(error)}): here is {usable}") from error
    return value


def sampling_options(temperature: float | None, top_p: float | None) -> dict:
    """What `generate` needs for them; of what is `None` the checkpoint's generation configuration decides."""
    options: dict = {}
    if temperature == 0:
        options |= {"do_sample": False, "temperature": None, "top_p": None}
    elif temperature is not None:
        options |= {"do_sample": True, "temperature": temperature}
    if top_p is not None:
        options |= {"do_sample": True, "top_p": top_p}
    return options


def check_model(name: str):
    """
    Raises:
        ValueError: `name` is no directory here, and no Hub repository can be called so.
    """
    if Path(name).is_dir():
        return
    if Path(name).exists():
        raise ValueError(f"{name} is a file: give the directory of a checkpoint.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"There is no directory {name}, and no Hub repository can have this name.") from error
