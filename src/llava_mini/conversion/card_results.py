# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What `llava-mini evaluate` measured, in a model card: `model-index` metadata, which the Hub shows, and a table."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from llava_mini.evaluation.report import Result, read_paper, to_markdown


# What a card says until there are results.
NOT_MEASURED = "- No benchmark has been run with these weights."
MEASURED = "- Benchmarks run with these weights: see Measured."
HEADING = "## Measured"
TASK_TYPES = {"image": "image-text-to-text", "video": "video-text-to-text"}


def read_results(path: Path) -> tuple[list[Result], dict]:
    """
    The rows of a `results.json` that were measured, and its settings.

    Raises:
        ValueError: the file holds no results, only parts of the benchmarks, or nothing that was measured.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        settings = saved["settings"]
        rows = [{name: value for name, value in row.items() if name != "difference"} for row in saved["results"]]
        results = [result for result in (Result(**row) for row in rows) if result.score is not None]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results ({error}): give what `llava-mini evaluate` wrote.") from error
    if settings.get("limit") is not None:
        raise ValueError(f"{path} was measured with --limit {settings['limit']}: a card takes whole benchmarks.")
    if not results:
        raise ValueError(f"{path} holds no measured score.")
    return results, settings


def add_results(card: str, title: str, results: list[Result], settings: dict) -> str:
    """A model card with these results, instead of earlier ones if it has some."""
    model_card = ModelCard(card)
    benchmarks = read_paper()["benchmarks"]
    model_card.data.model_name = title
    model_card.data.eval_results = [
        EvalResult(
            task_type=TASK_TYPES[benchmarks.get(result.benchmark, {"kind": "image"})["kind"]],
            dataset_type=result.dataset,
            dataset_name=result.title,
            metric_type=result.score_name,
            metric_name=result.score_name,
            metric_value=result.score,
        )
        for result in results
    ]
    text = model_card.text.split(f"\n{HEADING}\n")[0].rstrip("\n").replace(NOT_MEASURED, MEASURED)
    model_card.text = f"{text}\n\n{HEADING}\n\n{to_markdown(results, settings)}"
    return str(model_card)
