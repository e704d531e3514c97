# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Measured scores beside the paper's, as Markdown and as JSON."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


# The paper's scores, each with the number of its table; and where the paper contradicts itself.
PAPER = Path(__file__).parent / "benchmarks.json"
DECIMALS = 2


@cache
def read_paper() -> dict:
    """`benchmarks.json`."""
    return json.loads(PAPER.read_text(encoding="utf-8"))


@dataclass
class Result:
    """
    One score of one benchmark.

    Args:
        benchmark, title, score_name (`str`): what it is.
        score (`float`, *optional*): as measured, on the paper's scale; `None` when nothing was.
        n (`int`, *optional*): questions.
        paper (`float`, *optional*): of the model that is compared with.
        table (`int`, *optional*): the paper's.
        comparable (`str`): "as the paper", "differs", "not comparable", or "" for tasks that are not the paper's.
        note (`str`): why; or what failed.
        dataset (`str`): where the questions are from.
        task (`str`): of lmms-eval.
        judge (`str`, *optional*): model that scored the answers.
    """

    benchmark: str
    title: str
    score_name: str
    score: float | None = None
    n: int | None = None
    paper: float | None = None
    table: int | None = None
    comparable: str = ""
    note: str = ""
    dataset: str = ""
    task: str = ""
    judge: str | None = None

    @property
    def difference(self) -> float | None:
        """Measured less the paper's; `None` where they can't be compared."""
        if self.score is None or self.paper is None or self.comparable == "not comparable":
            return None
        return self.score - self.paper


def paper_results(name: str, measured: dict, against: str, judge: str | None) -> list[Result]:
    """
    The paper's benchmark `name` of what lmms-eval measured (its results file).

    Raises:
        ValueError: a score that should be there is not.
    """
    benchmark = read_paper()["benchmarks"][name]
    about = {key: benchmark[key] for key in ("title", "comparable", "note", "dataset", "task")}
    results = []
    for score in benchmark["scores"]:
        values = [find_score(measured, task, metric) for task, metric in score["results"]]
        value = score["scale"] * sum(values) / len(values) if values else None
        tasks = {task for task, _ in score["results"]} or set(measured["n-samples"])
        n = sum(measured["n-samples"][task]["effective"] for task in tasks)
        results.append(
            Result(
                name,
                score_name=score["name"],
                score=value,
                n=n,
                paper=score.get("paper", {}).get(against),
                table=score.get("table"),
                judge=judge,
                **about,
            )
        )
    return results


def find_score(measured: dict, task: str, metric: str) -> float:
    """
    Raises:
        ValueError: lmms-eval's results lack it, or it is no number (some tasks give none where a judge fails).
    """
    value = measured["results"].get(task, {}).get(metric)
    if not isinstance(value, (int, float)):
        raise ValueError(f"lmms-eval gave no score {metric} for {task}: {value!r}")
    return value


def other_results(name: str, measured: dict) -> list[Result]:
    """Every score of a task that is not the paper's, as lmms-eval gives it."""
    results = []
    for task, scores in measured["results"].items():
        n = measured.get("n-samples", {}).get(task, {}).get("effective")
        for metric, value in scores.items():
            # Names are "metric,filter"; what has no comma describes the task.
            is_score = "," in metric and "_stderr" not in metric and isinstance(value, (int, float))
            if is_score and not isinstance(value, bool):
                results.append(Result(name, task, metric.split(",")[0], value, n, task=task, dataset=task))
    return results


def failed(name: str, why: str) -> Result:
    """A benchmark without a score."""
    benchmark = read_paper()["benchmarks"].get(name, {"title": name})
    return Result(name, benchmark["title"], "", note=f"failed: {why}", task=benchmark.get("task", name))


def to_markdown(results: list[Result], settings: dict) -> str:
    """The table, and under it what it was made with."""
    against = settings["against"]
    lines = [
        "| benchmark | score | n | measured | paper | difference | |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        table = "" if result.table is None else f" (table {result.table})"
        cells = [
            result.title,
            result.score_name,
            "" if result.n is None else str(result.n),
            number(result.score),
            "" if result.paper is None else f"{result.paper:g}{table}",
            "" if result.difference is None else f"{result.difference:+.{DECIMALS}f}",
            "; ".join(
                text for text in (result.comparable, result.note, result.judge and f"judge {result.judge}") if text
            ),
        ]
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    made_with = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, False, ""))
    beside = f"Paper: {read_paper()['models'][against]}. " if any(result.paper for result in results) else ""
    return "\n".join([*lines, "", f"{beside}Made with: {made_with}.", ""])


def number(value: float | None) -> str:
    """Rounded for people; the JSON file has every digit."""
    return "" if value is None else f"{value:.{DECIMALS}f}"


def to_json(results: list[Result], settings: dict) -> str:
    """All digits, with the same settings."""
    rows = [asdict(result) | {"difference": result.difference} for result in results]
    return json.dumps({"settings": settings, "results": rows}, indent=1, ensure_ascii=False) + "\n"


__all__ = ["Result", "failed", "other_results", "paper_results", "read_paper", "to_json", "to_markdown"]
