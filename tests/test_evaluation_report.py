"""Scores beside the paper's: the data file, the table, what failed. Needs no lmms-eval."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_mini.evaluation.command import EXCEPTION, choose, find_reason
from llava_mini.evaluation.report import (
    Result,
    failed,
    other_results,
    paper_results,
    read_paper,
    to_json,
    to_markdown,
)


ORDER = ["vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "llava_w", "mmvet"]
# Table 1 of the paper, as printed there.
TABLE_1 = {
    "llava-1.5-7b": "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.6 63.4 30.5",
    "vicuna-7b": "77.6 60.9 56.2 70.4 57.0 84.4 1466.0 65.6 58.5 68.9 36.6",
    "vicuna-7b-hd": "78.9 61.8 58.5 69.7 59.1 85.3 1476.8 67.5 60.2 69.3 33.9",
    "llama-3.1-8b": "79.0 61.3 57.4 83.1 58.5 85.3 1522.7 71.6 63.0 70.2 37.2",
}
PRINTED_MEANS = {"llava-1.5-7b": 56.3, "vicuna-7b": 57.9, "vicuna-7b-hd": 58.6, "llama-3.1-8b": 60.7}
VIDEO = {
    "msvd_qa": [70.9, 4.0],
    "msrvtt_qa": [59.5, 3.6],
    "activitynet_qa": [53.5, 3.5],
    "generative": [2.97, 2.99, 3.61, 2.48, 2.67, 2.94],
    "mlvu": [42.8],
    "egoschema": [51.2],
}
SETTINGS = {"model": "DIR", "against": "llama-3.1-8b", "limit": None, "torch": "2"}


def test_the_papers_scores():
    benchmarks = read_paper()["benchmarks"]
    for model, row in TABLE_1.items():
        scores = [benchmarks[name]["scores"][0] for name in ORDER]
        assert [score["paper"][model] for score in scores] == list(map(float, row.split()))
        assert all(score["table"] == 1 for score in scores)
        # As the paper averages: MME, of 2000, counts as less than 1.
        values = [score["paper"][model] for score in scores]
        values[6] /= 2000
        assert sum(values) / 11 == pytest.approx(PRINTED_MEANS[model], abs=0.05)
    for name, scores in VIDEO.items():
        assert [score["paper"]["llama-3.1-8b"] for score in benchmarks[name]["scores"]] == scores
    overall, *subsets = benchmarks["mvbench"]["scores"]
    assert overall["paper"]["llama-3.1-8b"] == 44.5 and len(subsets) == 20
    assert all(score["table"] == 15 for score in subsets)
    papers = {score["name"]: score["paper"]["llama-3.1-8b"] for score in subsets}
    assert sum(papers.values()) / 20 == pytest.approx(44.5, abs=0.05)
    # The paper's own means of kinds tell swapped numbers: action, object, position, count, attribute, cognition.
    for mean, names in {
        52.1: "action sequence,action prediction,action antonym,fine grained action,unexpected action",
        43.2: "object existence,object interaction,object shuffle",
        31.8: "moving direction,action localization",
        37.5: "action count,moving count",
        44.5: "moving attribute,state change",
        35.0: "egocentric navigation,episodic reasoning,counterfactual inference",
    }.items():
        values = [papers[name] for name in names.split(",")]
        assert sum(values) / len(values) == pytest.approx(mean, abs=0.051), names
    assert (papers["scene transition"], papers["fine grained pose"], papers["character order"]) == (85.5, 29.5, 52.0)


def lmms_evals_file(scores: dict) -> dict:
    tasks = {task for task, _ in scores}
    results = {task: {"alias": task, "some_stderr,none": 0.1} for task in tasks}
    for (task, metric), value in scores.items():
        results[task][metric] = value
    return {"results": results, "n-samples": {task: {"original": 9, "effective": 4} for task in tasks}}


def test_scores_of_several_tasks_and_on_the_papers_scale():
    [gqa] = paper_results("gqa", lmms_evals_file({("gqa", "exact_match,none"): 0.625}), "llama-3.1-8b", None)
    assert (gqa.score, gqa.n, gqa.paper, gqa.table) == (62.5, 4, 61.3, 1)
    assert gqa.difference == pytest.approx(1.2)
    parts = {("pope_adv", "pope_f1_score,none"): 0.8, ("pope_pop", "pope_f1_score,none"): 0.9}
    [pope] = paper_results(
        "pope", lmms_evals_file(parts | {("pope_random", "pope_f1_score,none"): 1.0}), "vicuna-7b", None
    )
    assert (round(pope.score, 9), pope.n, pope.paper) == (90, 12, 84.4)
    with pytest.raises(ValueError, match="no score pope_f1_score,none for pope_random"):
        paper_results("pope", lmms_evals_file(parts), "vicuna-7b", None)
    with pytest.raises(ValueError, match="'N/A'"):
        paper_results("mme", lmms_evals_file({("mme", "mme_perception_score,none"): "N/A"}), "vicuna-7b", None)
    [vqav2] = paper_results("vqav2", lmms_evals_file({("vqav2_test", "submission,none"): None}), "vicuna-7b", None)
    assert (vqav2.score, vqav2.difference, vqav2.n, vqav2.paper) == (None, None, 4, 77.6)


def test_scores_of_other_tasks_are_as_lmms_eval_gives_them():
    [result] = other_results("mine", lmms_evals_file({("mine", "acc,none"): 0.5}))
    assert (result.title, result.score_name, result.score, result.n) == ("mine", "acc", 0.5, 4)
    assert result.paper is None and result.difference is None


def test_the_table_says_everything():
    results = [
        Result("gqa", "GQA", "accuracy", 62.5, 4, 61.3, 1, "as the paper"),
        Result("mmvet", "MM-Vet", "score", 30.0, 4, 37.2, 1, "differs", "the judge", judge="gpt-x"),
        Result("vqav2", "VQAv2", "accuracy", None, 4, 79.0, 1, "not comparable", "EvalAI"),
        failed("mme", "no | data\nhere"),
    ]
    assert to_markdown(results, SETTINGS).splitlines() == [
        "| benchmark | score | n | measured | paper | difference | |",
        "|---|---|---|---|---|---|---|",
        "| GQA | accuracy | 4 | 62.50 | 61.3 (table 1) | +1.20 | as the paper |",
        "| MM-Vet | score | 4 | 30.00 | 37.2 (table 1) | -7.20 | differs; the judge; judge gpt-x |",
        "| VQAv2 | accuracy | 4 |  | 79 (table 1) |  | not comparable; EvalAI |",
        "| MME |  |  |  |  |  | failed: no \\| data here |",
        "",
        "Paper: LLaVA-Mini, Llama-3.1-8B, 336 pixels, 1 token, images and videos (the released one). Made with: model "
        "DIR, against llama-3.1-8b, torch 2.",
    ]
    saved = json.loads(to_json(results, SETTINGS))
    assert saved["settings"] == SETTINGS
    assert saved["results"][0]["score"] == 62.5 and saved["results"][0]["difference"] == 62.5 - 61.3


def test_benchmarks_by_name_and_kind():
    everything = list(read_paper()["benchmarks"])
    assert choose("all") == everything
    assert choose("image") + choose("video") == everything
    assert choose("gqa, mine,gqa") == ["gqa", "mine"]
    with pytest.raises(ValueError, match="name some of image, video, all, vqav2"):
        choose(" , ")


def test_reasons_are_found_in_logs():
    log = "INFO\nTraceback\nhuggingface_hub.errors.LocalTokenNotFoundError: Token is required.\nRetryError: x\n"
    assert find_reason(log) == "Token is required."
    assert find_reason("[rank0]:ValueError: no such task\n") == "no such task"
    assert find_reason("loading\nvideo path:/a.mp4 does not exist, please check\n\n").startswith("video path:/a.mp4")
    assert find_reason("") == ""
    assert not EXCEPTION.search("the log says Error: nothing")


def test_lmms_eval_is_not_imported_before_it_is_needed():
    code = "import sys, llava_mini.cli, llava_mini.evaluation; print([m for m in sys.modules if m.startswith('lmms')])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"


def test_without_lmms_eval_the_extra_is_named(tmp_path):
    """An environment without it, made by a finder that finds everything but lmms-eval."""
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'lmms_eval' else find(name, *a)\n"
        "from llava_mini.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ["evaluate", "--model", str(Path(__file__).parents[1] / "examples/tiny/checkpoint")]
    arguments += ["--benchmarks", "gqa", "--output", str(tmp_path / "results")]
    made = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert made.returncode == 2 and not (tmp_path / "results").exists()
    assert made.stderr == "llava-mini: There is no lmms-eval here: pip install 'llava-mini-hf[eval]'.\n"
