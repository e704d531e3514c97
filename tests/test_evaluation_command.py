"""`llava-mini evaluate` as a user runs it: local tasks, two processes, killed and resumed, judged, what is missing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from test_video_streaming import write_video


pytest.importorskip("lmms_eval", reason="tested where the extra `eval` is: it pins av<16, all else is tested without")
from evaluate_tasks import write_tasks  # noqa: E402

from llava_mini.cli import build_parser  # noqa: E402
from llava_mini.evaluation.command import command_line, run_lmms_eval  # noqa: E402


CHECKPOINT = Path(__file__).parents[1] / "examples/tiny/checkpoint"
TYPES = ["colour", "count", "relation", "caption", "video direction", "video order"]
PER_TYPE = 40


def command(tasks, output, *arguments) -> list[str]:
    line = [sys.executable, "-m", "llava_mini.cli", "evaluate", "--model", str(CHECKPOINT), "--output", str(output)]
    return [*line, "--include-path", str(tasks), "--dtype", "float32", "--device", "cpu", *map(str, arguments)]


def run(*line, **environment) -> subprocess.CompletedProcess:
    # One thread: processes side by side, and the same rounding whatever the machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=400)


def results(output: Path) -> list[dict]:
    return json.loads((output / "results.json").read_text())["results"]


def answered(folder: Path) -> list[str]:
    """The keys of all kept answers."""
    lines = [line for path in folder.glob("answers_*.jsonl") for line in path.read_text().splitlines() if line]
    return [line[:60] for line in lines]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, PER_TYPE, seed=6, types=TYPES)
    return folder


@pytest.fixture(scope="module")
def whole(tasks, tmp_path_factory):
    """The table of an uninterrupted run in one process."""
    output = tmp_path_factory.mktemp("whole") / "results"
    done = run(*command(tasks, output, "--benchmarks", "tiny_json", "--batch-size", 2))
    assert done.returncode == 0, done.stderr
    return done.stdout, output


def test_killed_after_half_and_resumed(tasks, whole, tmp_path):
    line = command(tasks, tmp_path / "results", "--benchmarks", "tiny_json", "--batch-size", 2)
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    kept = tmp_path / "results/tiny_json/answers"
    while len(answered(kept)) < PER_TYPE:  # of twice as many questions
        assert process.poll() is None, "it ended before half"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # what it had started ends with its pipe, at once
    half = len(answered(kept))
    assert PER_TYPE <= half < 2 * PER_TYPE
    assert not (tmp_path / "results/table.md").exists()

    refused = run(*line)
    assert refused.returncode == 2 and "go on with it by --resume" in refused.stderr
    changed = run(*line, "--limit", "3", "--resume")
    assert changed.returncode == 2 and "was made with limit None, not 3: resume with the same" in changed.stderr

    resumed = run(*line, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole[0]
    assert results(tmp_path / "results") == results(whole[1])
    keys = answered(kept)
    assert len(keys) == len(set(keys)) == 2 * PER_TYPE  # none was asked twice

    again = run(*line, "--resume")  # what is done is not done again
    assert again.stdout == whole[0] and "running" not in again.stderr


def test_two_processes_answer_each_question_once(tasks, whole, tmp_path):
    """An odd number of questions: the second process has one less, and what evens it out is asked by nobody."""
    output = tmp_path / "results"
    arguments = ("--benchmarks", "tiny_json", "--batch-size", 2, "--processes", 2, "--limit", 2 * PER_TYPE - 1)
    done = run(*command(tasks, output, *arguments))
    assert done.returncode == 0, done.stderr
    assert len(list((output / "tiny_json/answers").iterdir())) == 2
    keys = answered(output / "tiny_json/answers")
    assert len(keys) == len(set(keys)) == 2 * PER_TYPE - 1
    [result] = results(output)
    assert result["n"] == 2 * PER_TYPE - 1
    # The answers of one process, without the last question.
    samples = [json.loads(line) for path in whole[1].rglob("*_samples_*.jsonl") for line in path.open()]
    right = [sample["exact_match"] for sample in samples if sample["doc_id"] < 2 * PER_TYPE - 1]
    assert len(right) == 2 * PER_TYPE - 1
    assert result["score"] == pytest.approx(sum(right) / len(right), abs=1e-12)


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible judge that likes every answer."""

    def do_POST(self):  # noqa: N802 (the base class's name)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        content = "{'pred': 'yes', 'score': 4}"
        body = json.dumps({"choices": [{"message": {"content": content}}], "model": "mine"}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_judged_benchmark_and_ones_that_are_not_there(tasks, tmp_path):
    """MSVD-QA in its own files, scored by a judge on this machine; a name that nobody knows."""
    folder = tmp_path / "home/GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA"
    (folder / "videos").mkdir(parents=True)
    asked = [{"video_name": "v1", "question": f"what {i}?", "question_id": f"q{i}"} for i in range(3)]
    answers = [{"question_id": f"q{i}", "answer": "a circle", "type": 0} for i in range(3)]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(answers))
    write_video(folder / "videos/v1.mp4", 12, fps=4)
    server = HTTPServer(("127.0.0.1", 0), Judge)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "OPENAI_API_KEY": "none",
        "OPENAI_API_URL": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "1",
    }
    line = command(tasks, tmp_path / "results", "--benchmarks", "nobody,msvd_qa")
    try:
        done = run(*line, **environment)
    finally:
        server.shutdown()
    assert done.returncode == 2
    nobody, accuracy, score = results(tmp_path / "results")
    assert nobody["note"].startswith("failed: Tasks not found: nobody") and nobody["score"] is None
    assert (accuracy["score"], accuracy["paper"], accuracy["n"]) == (100.0, 70.9, 3)
    assert (score["score"], score["paper"], score["judge"]) == (4.0, 4.0, "gpt-3.5-turbo")
    assert all(request["model"] == "gpt-3.5-turbo" and request["temperature"] == 0 for request in server.asked)
    assert len(server.asked) == 3 and "Correct Answer: a circle" in server.asked[0]["messages"][1]["content"]
    assert "| MSVD-QA | accuracy | 3 | 100.00 | 70.9 | +29.10 | differs;" in done.stdout
    assert "No score for nobody" in done.stderr

    unjudged = run(*command(tasks, tmp_path / "unjudged", "--benchmarks", "msvd_qa"), OPENAI_API_KEY="")
    assert unjudged.returncode == 2 and "set OPENAI_API_KEY" in results(tmp_path / "unjudged")[0]["note"]


def test_a_judge_without_a_verdict_is_no_score(tmp_path, monkeypatch):
    """lmms-eval counts such answers as wrong; and its results are taken only when there are some."""
    script = "import pathlib, sys; print(sys.argv[2]); pathlib.Path(sys.argv[1]).write_text('{}')"

    def stand_in(name, folder, arguments):
        return [sys.executable, "-c", script, str(folder / f"{name}_results.json"), "All 5 attempts failed."]

    monkeypatch.setattr("llava_mini.evaluation.command.command_line", stand_in)
    with pytest.raises(ValueError, match="no verdict 1 times"):
        run_lmms_eval("one", tmp_path, None, judge="gpt")
    assert not (tmp_path / "result.json").exists()
    run_lmms_eval("two", tmp_path, None, judge=None)
    assert (tmp_path / "result.json").read_text() == "{}"


def parse(*arguments):
    return build_parser().parse_args(["evaluate", "--model", "DIR", "--benchmarks", "gqa", *arguments])


def test_options_reach_lmms_eval():
    line = command_line("gqa", Path("out"), parse("--load-4bit", "--max-frames", "9", "--", "--num_fewshot", "0"))
    model_args = line[line.index("--model_args") + 1]
    assert model_args == ("pretrained=DIR,answers=out/answers,dtype=auto,load_4bit=True,max_frames=9,image_backend=pil")
    assert line[line.index("--tasks") + 1] == "llava_mini_gqa" and line[-2:] == ["--num_fewshot", "0"]
    assert Path(line[line.index("--include_path") + 1]).name == "tasks"
    line = command_line("mine", Path("out"), parse("--force-simple", "--limit", "5", "--include-path", "here"))
    assert line[line.index("--include_path") + 1] == "here" and line[line.index("--limit") + 1] == "5"
    assert line[line.index("--tasks") + 1] == "mine" and "--force_simple" in line
    with pytest.raises(ValueError, match="DIR,2 has a sign"):
        command_line(
            "gqa", Path("out"), build_parser().parse_args(["evaluate", "--model", "DIR,2", "--benchmarks", "x"])
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "0"), "0 is not above 0"),
        (("--batch-size", "-1"), "-1 is not above 0"),
        (("--against", "nobody"), "invalid choice: 'nobody'"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert message in capsys.readouterr().err
