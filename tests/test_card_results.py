"""Measured scores in model cards: what the Hub shows is what was measured, and nothing else."""

import json

import pytest
from huggingface_hub import ModelCard

from llava_mini.conversion.card_results import add_results, read_results
from llava_mini.conversion.hub import main
from llava_mini.evaluation.report import Result, failed, to_json


SETTINGS = {"model": "DIR", "against": "llama-3.1-8b", "limit": None, "torch": "2"}
ROWS = [
    Result("gqa", "GQA", "accuracy", 61.25, 12578, 61.3, 1, "as the paper", dataset="lmms-lab-encoder/GQA"),
    Result(
        "vqav2", "VQAv2", "accuracy", None, 4, 79.0, 1, "not comparable", "EvalAI", dataset="lmms-lab-encoder/VQAv2"
    ),
    failed("mme", "no data"),
    Result("mlvu", "MLVU", "mean of 7 kinds", 40.0, 9, 42.8, None, "as the paper", dataset="sy1998/MLVU_dev"),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(to_json(ROWS, SETTINGS))
    return path


def test_a_card_takes_what_was_measured(converted, tmp_path, file):
    import shutil

    folder = shutil.copytree(converted("standard"), tmp_path / "folder")
    line = [str(folder), "someone/tiny", "--prepare-only"]
    assert main(line) == 0
    before = (folder / "README.md").read_text()
    assert "No benchmark has been run with these weights" in before and "model-index" not in before
    assert main([*line, "--results", str(file)]) == 0
    card = ModelCard((folder / "README.md").read_text())
    shown = [
        (r.dataset_type, r.dataset_name, r.metric_name, r.metric_value, r.task_type) for r in card.data.eval_results
    ]
    assert shown == [
        ("lmms-lab-encoder/GQA", "GQA", "accuracy", 61.25, "image-text-to-text"),
        ("sy1998/MLVU_dev", "MLVU", "mean of 7 kinds", 40.0, "video-text-to-text"),
    ]
    assert card.data.library_name == "transformers" and card.data.tags == ["llava-mini", "vision-language", "video"]
    assert "| GQA | accuracy | 12578 | 61.25 | 61.3 (table 1) | -0.05 | as the paper |" in card.text
    assert "No benchmark has been run" not in card.text and "VQAv2" not in card.text and "MME" not in card.text
    # A second time instead of the first, and the rest of the card as it was.
    assert main([*line, "--results", str(file)]) == 0
    again = (folder / "README.md").read_text()
    assert again.count("## Measured") == 1 and again == str(card)
    assert card.text.startswith("\n# tiny\n") and "## Citation" in card.text


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS, SETTINGS | {"limit": 10}, "measured with --limit 10: a card takes whole benchmarks"),
        (ROWS[1:3], SETTINGS, "holds no measured score"),
        (None, SETTINGS, "holds no results"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path, rows, settings, message):
    path = tmp_path / "results.json"
    path.write_text(to_json(rows, settings) if rows else json.dumps({"settings": settings, "results": [{"a": 1}]}))
    with pytest.raises(ValueError, match=message):
        read_results(path)
    with pytest.raises(ValueError, match="holds no results"):
        read_results(tmp_path / "nowhere.json")


def test_tasks_that_are_not_the_papers_are_results_too():
    card = "---\nlicense: mit\n---\n# Mine\n"
    made = ModelCard(add_results(card, "Mine", [Result("mine", "mine", "acc", 0.5, 2, dataset="mine")], SETTINGS))
    [result] = made.data.eval_results
    assert (result.dataset_name, result.metric_value, made.data.model_name) == ("mine", 0.5, "Mine")
