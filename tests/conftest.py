import os


# Before anything imports transformers: no test may look for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tiny import tiny_model


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Float results that don't depend on how many cores a machine has; tiny models gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (2, 2), (3, 3)], ids=lambda p: f"C{p[0]}N{p[1]}")
def model(request):
    size, ratio = request.param
    return tiny_model(compressor_size=size, resolution_ratio=ratio)
