import os


# Before anything imports transformers: no test may look for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from llava_mini.conversion.command import convert


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Float results that don't depend on how many cores a machine has; tiny models gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (2, 2), (3, 3)], ids=lambda p: f"C{p[0]}N{p[1]}")
def model(request):
    size, ratio = request.param
    return tiny_model(compressor_size=size, resolution_ratio=ratio)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A function: the name of a golden case to the directory of its converted checkpoint."""

    @cache
    def convert_case(name: str) -> Path:
        directory = tmp_path_factory.mktemp("converted") / name
        convert(Path(__file__).parent / "golden" / name / "original", directory)
        return directory

    return convert_case
