"""The paper's benchmarks as lmms-eval's tasks: each is loaded by its task manager, and asks what the authors ask."""

import json
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image


pytest.importorskip("lmms_eval", reason="tested where the extra `eval` is: it pins av<16, all else is tested without")
import lmms_eval.api.task  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

from llava_mini.evaluation import TASKS  # noqa: E402
from llava_mini.evaluation.adapter import CHAT_TEMPLATES  # noqa: E402
from llava_mini.evaluation.report import read_paper  # noqa: E402


PICTURE = Image.new("RGB", (8, 8))
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
SENTENCE = (
    "Answer the question based on the video. Provide a complete sentence that directly mirrors the phrasing of the "
    "question and focuses on giving a clear, relevant answer.\n\n"
)
MMBENCH = {
    "category": "c",
    "L2-category": "l",
    "index": 1,
    "source": "s",
    "split": "dev",
    "image": PICTURE,
    "answer": "A",
}
MMBENCH |= {"question": "Which is right?", "A": "This", "B": "That", "C": "nan", "D": "nan", "hint": "Look left."}
VIDEO_QA = {
    "video_name": "v1",
    "question": "what is a man doing?",
    "answer": "singing",
    "question_id": "q1",
    "type": "0",
}
GENERATIVE = {"video_name": "v1", "question": "What is going on?", "answer": "A race.", "question_1": "Is it a race?"}
GENERATIVE |= {"question_2": "None"}

# A made-up question in each benchmark's form, and the authors' prompt of it (model_vqa_loader.py and its like; the
# question files of LLaVA-1.5's eval.zip).
QUESTIONS = {
    "vqav2": (
        {"question": "Where is he looking?", "image": PICTURE, "answer": "down", "question_id": 1},
        "Where is he looking?" + SHORT,
    ),
    "gqa": (
        {"question": "Is it overcast?", "image": PICTURE, "answer": "no", "imageId": "n1", "id": "n1"},
        "Is it overcast?" + SHORT,
    ),
    "vizwiz": (
        {"question": "What is this?", "image": PICTURE, "answer": "a cup", "question_id": "VizWiz_1", "answers": None},
        "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
    ),
    "scienceqa": (
        {"question": "Which is cold?", "hint": "Look.", "choices": ["ice", "fire"], "answer": 0, "image": PICTURE},
        "Context: Look.\nWhich is cold?\nA. ice\nB. fire" + LETTER,
    ),
    "textvqa": (
        {"question": "what is the brand?", "ocr_tokens": ["DAKOTA", "2"], "image": PICTURE, "answers": ["x"]}
        | {"answer": "x", "question_id": 1},
        "What is the brand?\nReference OCR token: DAKOTA, 2" + SHORT,
    ),
    "pope": (
        {"question": "Is there a cat in the image?", "image": PICTURE, "answer": "yes", "question_id": 1},
        "Is there a cat in the image?" + SHORT,
    ),
    "mme": (
        {"question": "Is this a stop sign? Please answer yes or no.", "image": PICTURE, "answer": "Yes"}
        | {"question_id": "OCR/1", "category": "OCR"},
        "Is this a stop sign?" + SHORT,
    ),
    "mmbench": (MMBENCH, "Look left.\nWhich is right?\nA. This\nB. That" + LETTER),
    "mmbench_cn": (
        MMBENCH | {"question": "哪个对?", "A": "这个", "B": "那个", "hint": "nan"},
        "哪个对?\nA. 这个\nB. 那个" + LETTER,
    ),
    "seed": (
        {"question": "How many towels?", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
        | {"answer": "A", "image": [PICTURE], "data_type": "image", "question_id": "1"},
        "How many towels?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER,
    ),
    "llava_w": (
        {"question": "What is this place called?", "image": PICTURE, "gpt_answer": "x", "question_id": 1},
        "What is this place called?",
    ),
    "mmvet": ({"question": "What is x?", "image": PICTURE, "answer": "-1", "question_id": "v1"}, "What is x?"),
    "msvd_qa": (VIDEO_QA, SENTENCE + "what is a man doing?"),
    "msrvtt_qa": (VIDEO_QA, SENTENCE + "what is a man doing?"),
    "activitynet_qa": (VIDEO_QA, SENTENCE + "what is a man doing?"),
    "generative": (GENERATIVE, None),  # see below: the consistency part asks otherwise
    "mvbench": (
        {"video": "1.mp4", "question": "What happens?", "candidates": ["He sits.", "He runs."], "answer": "He runs."},
        "Question: What happens?\nOptions:\n(A) He sits.\n(B) He runs.\nAnswer with one letter.",
    ),
    "mlvu": (
        {
            "video_name": "1.mp4",
            "question": "Where is it?\n(A) In Rome\n(B) In Oslo",
            "answer": "B",
            "task_type": "ego",
        },
        "Question: Where is it?\nOptions:\n(A) In Rome\n(B) In Oslo\nAnswer with one letter.",
    ),
    "egoschema": (
        {"video_idx": "v1", "question": "What is C doing?", "option": ["A. Cooking.", "B. Reading."], "answer": "0"},
        "You are a helpful expert in first person view video analysis. Please provide a single-letter answer (A, B, C, "
        "D, E) to the following multiple-choice question, and your answer must be one of the letters (A, B, C, D, or "
        "E). You must not provide any other response or explanation.\nQuestion: What is C doing?\nOptions:\n(A) "
        "Cooking.\n(B) Reading.\nAnswer with one letter.",
    ),
}
LENGTHS = {"scienceqa": 1024, "mmbench": 1024, "mmbench_cn": 1024, "msvd_qa": 1024, "msrvtt_qa": 1024}
LENGTHS |= {"activitynet_qa": 1024, "generative": 1024, "mvbench": 1024, "mlvu": 1024}
SPLITS = ("test", "train", "dev", "val", "validation", "testdev", "adversarial", "popular", "random")


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    # Before any task is read: some read it at once, without a default.
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
    return TaskManager("ERROR", include_path=str(TASKS), model_name="llava_mini")


def load(manager, monkeypatch, tmp_path, name):
    """The benchmark's tasks by name, on one made-up question."""
    doc = QUESTIONS[name][0]
    if name in ("msvd_qa", "msrvtt_qa"):
        doc = {key: value for key, value in doc.items() if key not in ("answer", "type")}
    data = datasets.Dataset.from_list([doc])
    made = datasets.DatasetDict(dict.fromkeys(SPLITS, data))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split=None, **kwargs: made[split] if split else made)
    monkeypatch.setattr(lmms_eval.api.task, "snapshot_download", lambda **kwargs: str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # some want one at once
    if name == "gqa":
        monkeypatch.setattr(datasets.Dataset, "map", lambda self, *args, **kwargs: self)
    loaded = manager.load_task_or_group([read_paper()["benchmarks"][name]["task"]], task_type="chat")
    [(key, value)] = loaded.items()
    return value if isinstance(value, dict) else {key: value}


def test_all_of_them_are_here():
    benchmarks = read_paper()["benchmarks"]
    kinds = [benchmark["kind"] for name, benchmark in benchmarks.items() if name != "mmbench_cn"]
    assert (kinds.count("image"), kinds.count("video")) == (11, 7)
    assert list(benchmarks) == list(QUESTIONS)
    assert {path.stem for path in TASKS.glob("*.yaml")} == set(benchmarks)
    for name, benchmark in benchmarks.items():
        text = (TASKS / f"{name}.yaml").read_text()
        assert "# " in text and "Source: scripts/llavamini/eval_" in text.replace("\n# ", " ")
        assert benchmark["comparable"] in ("as the paper", "differs", "not comparable")
        assert benchmark["comparable"] == "as the paper" or benchmark["note"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_prompt_and_decoding_are_the_authors(manager, monkeypatch, tmp_path, name):
    if name in ("msvd_qa", "msrvtt_qa"):
        monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: json.dumps([VIDEO_QA]))
    tasks = load(manager, monkeypatch, tmp_path, name)
    for task_name, task in tasks.items():
        doc = dict(QUESTIONS[name][0])
        prompt = QUESTIONS[name][1]
        if name == "generative":
            prompt = "Is it a race?" if task_name == "videochatgpt_consistency" else "What is going on?"
        # What the model is asked: messages, with pictures and videos first.
        monkeypatch.setattr(task, "doc_to_visual", lambda doc: [PICTURE])
        [message] = task.doc_to_messages(doc)
        assert [part["type"] for part in message["content"]] == ["image", "text"]
        assert message["content"][1]["text"] == prompt
        options = task.config.generation_kwargs
        assert options["max_new_tokens"] == LENGTHS.get(name, 128)
        assert (options["temperature"], options["do_sample"], options["num_beams"], options["until"]) == (
            0,
            False,
            1,
            [],
        )
        assert options.get("llava_mini_max_frames") == (1000 if name in ("mvbench", "mlvu") else None)
        assert options.get("llava_mini_chat_template") == ("vicuna_v1" if name == "egoschema" else None)
    scored = {task for score in read_paper()["benchmarks"][name]["scores"] for task, _ in score["results"]}
    assert scored <= set(tasks) and (scored == set(tasks) or not scored)
    metrics = {(t, m) for s in read_paper()["benchmarks"][name]["scores"] for t, m in s["results"]}
    for task_name, metric in metrics:
        assert metric.removesuffix(",none") in tasks[task_name].aggregation()


def test_questions_without_pictures_hints_and_options(manager, monkeypatch, tmp_path):
    task = load(manager, monkeypatch, tmp_path, "scienceqa")["scienceqa_img"]
    doc = QUESTIONS["scienceqa"][0] | {"image": None, "hint": ""}
    [message] = task.doc_to_messages(doc)
    assert message["content"] == [{"type": "text", "text": "Which is cold?\nA. ice\nB. fire" + LETTER}]
    task = load(manager, monkeypatch, tmp_path, "mmbench")["mmbench_en_dev"]
    for empty in ("nan", "", None, float("nan")):
        assert task.doc_to_text(MMBENCH | {"hint": empty}) == "Which is right?\nA. This\nB. That" + LETTER


@pytest.mark.parametrize(
    "question",
    [
        "Where is it?\n(A) In Rome\n(B) In Oslo",
        "Question: Where is it?\nOptions:\n(A) In Rome\n(B) In Oslo\n",
        "Where is it?\nA. In Rome\nB. In Oslo",
    ],
)
def test_mlvus_questions_in_every_form(manager, monkeypatch, tmp_path, question):
    task = load(manager, monkeypatch, tmp_path, "mlvu")["mlvu_dev"]
    assert task.doc_to_text(QUESTIONS["mlvu"][0] | {"question": question}) == QUESTIONS["mlvu"][1]
    with pytest.raises(Exception, match="no options"):
        task.doc_to_text(QUESTIONS["mlvu"][0] | {"question": "Where is it?"})


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("B", 1),
        ("(B) He runs.", 1),
        ("B)", 1),
        ("b", 0),
        ("B.", 0),
        ("(A) He sits.", 0),
        ("", 0),
        (")", 0),
        ("He runs", 0),
    ],
)
def test_scores_are_the_authors_printed_ones(manager, monkeypatch, tmp_path, answer, is_right):
    task = load(manager, monkeypatch, tmp_path, "mvbench")["mvbench_action_sequence"]
    [(metric, value)] = task.process_results(QUESTIONS["mvbench"][0], [answer]).items()
    # Empty answers count, as wrong.
    assert task.aggregation()[metric]([value]) == 100 * is_right
    task = load(manager, monkeypatch, tmp_path, "mlvu")["mlvu_dev"]
    [(metric, value)] = task.process_results(QUESTIONS["mlvu"][0], [answer]).items()
    assert task.aggregation()[metric]([value]) == pytest.approx(100 * is_right / 7)  # of seven kinds


def test_videos_of_video_chatgpts_folders(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    spec = importlib.util.spec_from_file_location("video_qa", TASKS / "video_qa.py")
    video_qa = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(video_qa)
    folder = tmp_path / "GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA"
    (folder / "videos").mkdir(parents=True)
    (folder / "test_a.json").write_text(json.dumps([{"question_id": "q1", "answer": "singing"}]))
    assert {"test": str(folder / "test_q.json")} == video_qa.MSVD_QUESTIONS
    questions = datasets.Dataset.from_list([{"question_id": "q1", "question": "what?", "video_name": "v1"}])
    assert video_qa.add_msvd_answers(questions)[0] == questions[0] | {"answer": "singing", "type": ""}
    with pytest.raises(ValueError, match="no answer to question q2"):
        video_qa.add_msvd_answers(datasets.Dataset.from_list([{"question_id": "q2"}]))
    with pytest.raises(ValueError, match="no video v1"):
        video_qa.msvd_video({"video_name": "v1"})
    (folder / "videos/v1.avi").touch()
    assert video_qa.msvd_video({"video_name": "v1"}) == [str(folder / "videos/v1.avi")]


def test_egoschemas_template_is_here():
    assert "USER: " in (CHAT_TEMPLATES / "vicuna_v1.jinja").read_text()
