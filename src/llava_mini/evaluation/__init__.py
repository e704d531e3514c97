# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
LLaVA-Mini in lmms-eval, and the paper's benchmarks as its tasks (`pip install "llava-mini-hf[eval]"`).

lmms-eval takes seconds to import: nothing here imports it before it is needed.
"""

from pathlib import Path


# What `--include_path` takes.
TASKS = Path(__file__).parent / "tasks"


def manifest():
    """What lmms-eval's entry point group `lmms_eval.models` asks for: `--model llava_mini`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="llava_mini",
        chat_class_path="llava_mini.evaluation.adapter.LlavaMini",
        simple_class_path="llava_mini.evaluation.adapter.LlavaMiniSimple",
    )


__all__ = ["TASKS", "manifest"]
