"""
What runs on vLLM, in an environment of its own (`.ci/run` makes it): skipped where vLLM is not installed.

The folder's name is not vllm's, which would be found in its place.
"""

import json
import os
import shutil
from pathlib import Path

import pytest


os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # engines in this process start in two seconds and can be changed by a test
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)
ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny" / "checkpoint"


def pytest_configure(config):
    # vLLM's own.
    for kind in ("FutureWarning", "DeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{kind}")


def widen_heads(path: Path) -> None:
    """
    Half as many heads, twice as wide, of the same weights: vLLM's attention on CPUs has no heads of 16, the golden
    checkpoints' width. It is another model, as good for comparing two engines.
    """
    values = json.loads(path.read_text())
    text = values.get("text_config", values)
    for name in ("num_attention_heads", "num_key_value_heads"):
        text[name] //= 2
    if text.get("head_dim"):
        text["head_dim"] *= 2
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def checkpoints(converted, tmp_path_factory):
    """A function: "tiny", a golden case's name, or that with "original/" before it, to a checkpoint's directory."""
    made = {"tiny": TINY}

    def find(name: str) -> Path:
        if name not in made:
            case = name.removeprefix("original/")
            directory = tmp_path_factory.mktemp("wide") / case
            if case == name:
                shutil.copytree(converted(case), directory)
            else:
                golden = ROOT / "tests" / "golden" / case
                shutil.copytree(golden / "vision_tower", directory.parent / "vision_tower")
                shutil.copytree(golden / "original", directory)
            widen_heads(directory / "config.json")
            made[name] = directory
        return made[name]

    return find
