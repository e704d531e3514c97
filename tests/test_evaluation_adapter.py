"""lmms-eval's model: answers, likelihoods, order, batches, pictures that are encoded once, answers that are kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_video_streaming import write_video
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mini.video_streaming import prepare_streamed_inputs


pytest.importorskip("lmms_eval", reason="tested where the extra `eval` is: it pins av<16, all else is tested without")
from evaluate_tasks import write_tasks  # noqa: E402
from lmms_eval.api.instance import Instance, unwrap_generation_output  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

from llava_mini.evaluation.adapter import LlavaMini, LlavaMiniSimple, generation_options, make_batches  # noqa: E402
from llava_mini.evaluation.rows import RowReader  # noqa: E402


CHECKPOINT = Path(__file__).parents[1] / "examples/tiny/checkpoint"
GREEDY = {"until": [], "max_new_tokens": 12, "do_sample": False}


def draw(colour: str, second: str | None = None) -> Image.Image:
    picture = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(picture).ellipse((8, 20, 40, 52), fill=colour)
    if second:
        ImageDraw.Draw(picture).rectangle((50, 50, 78, 78), fill=second)
    return picture


@pytest.fixture(scope="module")
def parts():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """Questions of every form and many lengths: pictures, two pictures, clips of two lengths, no picture at all."""
    folder = tmp_path_factory.mktemp("clips")
    clips = [str(write_video(folder / f"{n}.mp4", n * 4, fps=4)) for n in (3, 6)]
    return [
        {"visuals": [draw("red")], "question": "What colour is the circle?"},
        {"visuals": [], "question": "How many shapes are there?"},
        {"visuals": [clips[0]], "question": "What colour is the shape?"},
        {"visuals": [draw("blue", "red")], "question": "Is the circle on the left or on the right of the square?"},
        {"visuals": [draw("green"), draw("blue")], "question": "What colour is the background?"},
        {"visuals": [draw("red")], "question": "What colour is the background?"},
        {"visuals": [clips[1]], "question": "Which way does the shape move?"},
        {"visuals": [draw("green", "blue")], "question": "Describe the picture."},
        {"visuals": [draw("red")], "question": "How many shapes are there?"},
        {"visuals": [clips[0]], "question": "What shape is it?"},
        {"visuals": [draw("black")], "question": "What colour is the circle?"},
    ]


def to_content(doc: dict) -> list[dict]:
    kinds = ["video" if isinstance(visual, str) else "image" for visual in doc["visuals"]]
    content = [{"type": kind, "url": visual} for kind, visual in zip(kinds, doc["visuals"])]
    return [*content, {"type": "text", "text": doc["question"]}]


def chat_requests(adapter, docs, options=GREEDY):
    """As lmms-eval asks chat models."""
    adapter.task_dict = {"made_up": {"test": docs}}

    def to_messages(doc):
        return [{"role": "user", "content": to_content(doc)}]

    choose = options if callable(options) else lambda i: options
    return [
        Instance(
            "generate_until",
            (docs[i]["question"], to_messages, dict(choose(i)), i, "made_up", "test"),
            0,
            {"task": "made_up", "doc_id": i, "repeats": 1},
        )
        for i in range(len(docs))
    ]


def score_requests(adapter, docs, answers):
    """As lmms-eval asks for likelihoods: each answer of each question."""
    adapter.task_dict = {"made_up": {"test": docs}}
    return [
        Instance(
            "loglikelihood",
            (doc["question"], f" {answer}", lambda doc: doc["visuals"], i, "made_up", "test"),
            j,
            {"task": "made_up", "doc_id": i, "repeats": 1},
        )
        for i, doc in enumerate(docs)
        for j, answer in enumerate(answers)
    ]


@pytest.fixture(scope="module")
def expected(parts, docs):
    """Each question alone, through the public functions and without the adapter."""
    model, processor = parts
    answers = []
    for doc in docs:
        chat = [{"role": "user", "content": to_content(doc)}]
        inputs = prepare_streamed_inputs(processor, chat)
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answers.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert len(set(answers)) > 5  # so that swapped answers show
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_answers_are_those_of_each_question_alone(parts, docs, expected, batch_size):
    adapter = LlavaMini(*parts, batch_size=batch_size)
    assert adapter.generate_until(chat_requests(adapter, docs)) == expected
    backwards = docs[::-1]
    assert adapter.generate_until(chat_requests(adapter, backwards)) == expected[::-1]


@pytest.mark.parametrize("options", [{"load_8bit": True}, {"device_map": "auto", "dtype": "float32"}], ids=str)
def test_loading_options(docs, expected, options):
    """From a path; in eight bits the language model alone, and one answer of the eleven may fall otherwise."""
    pytest.importorskip("bitsandbytes")
    adapter = LlavaMini(str(CHECKPOINT), batch_size=16, **options)
    parts = {name: {type(m).__name__ for m in part.modules()} for name, part in adapter.model.model.named_children()}
    assert ("Linear8bitLt" in parts["language_model"]) == ("load_8bit" in options)
    assert not any("Linear8bitLt" in parts[name] for name in ("vision_tower", "compressor", "multi_modal_projector"))
    answers = adapter.generate_until(chat_requests(adapter, docs))
    assert sum(own == wanted for own, wanted in zip(answers, expected)) >= len(docs) - ("load_8bit" in options)


def test_simple_requests_give_the_same(parts, docs, expected):
    adapter = LlavaMiniSimple(*parts, batch_size=4)
    adapter.task_dict = {"made_up": {"test": docs}}
    requests = [
        Instance(
            "generate_until",
            (doc["question"], dict(GREEDY), lambda doc: doc["visuals"], i, "made_up", "test"),
            0,
            {"task": "made_up", "doc_id": i, "repeats": 1},
        )
        for i, doc in enumerate(docs)
    ]
    assert adapter.generate_until(requests) == expected


def test_batches_are_full_of_equal_options_and_lose_nobody(parts, docs):
    adapter = LlavaMini(*parts, batch_size=4)
    options = [GREEDY, GREEDY | {"max_new_tokens": 2}]
    requests = chat_requests(adapter, docs, lambda i: options[i % 2])
    jobs = [adapter._read("generate_until", i, request) for i, request in enumerate(requests)]
    batches = list(make_batches(jobs, 4))
    assert sorted(job.index for batch in batches for job in batch) == list(range(len(docs)))
    assert sorted(len(batch) for batch in batches) == [1, 2, 4, 4]
    assert all(job.options == batch[0].options for batch in batches for job in batch)
    answers = adapter.generate_until(requests)
    longer = adapter.generate_until(chat_requests(adapter, docs))
    assert [len(adapter.tokenizer(answer)["input_ids"]) <= 3 for answer in answers[1::2]] == [True] * 5
    assert answers[0::2] == longer[0::2] and answers[7] != longer[7]


def test_pictures_of_several_questions_are_encoded_once(parts, docs, expected, monkeypatch):
    """In one batch of all: three questions about one picture, two about one clip."""
    model, processor = parts
    encoded = []
    inner = model.model.extract_features
    monkeypatch.setattr(model.model, "extract_features", lambda pixels: encoded.append(len(pixels)) or inner(pixels))
    adapter = LlavaMini(model, processor, batch_size=16)
    assert adapter.generate_until(chat_requests(adapter, docs)) == expected
    distinct = 6 + 3 + 6  # pictures, frames
    assert sum(encoded) == distinct
    encoded.clear()
    adapter = LlavaMini(model, processor, batch_size=1)
    adapter.generate_until(chat_requests(adapter, docs))
    assert sum(encoded) == distinct + 2 + 3


def test_the_end_of_an_answer(parts, docs, expected):
    adapter = LlavaMini(*parts, batch_size=4)
    answers = adapter.generate_until(chat_requests(adapter, docs, GREEDY | {"until": [" ", "e"]}))
    assert answers == [answer.split(" ")[0].split("e")[0] for answer in expected]
    stops, options = generation_options({"until": "x", "temperature": 0.2, "do_sample": False, "image_aspect_ratio": 1})
    assert stops == ["x"] and options["do_sample"] is False and options["temperature"] is None
    assert "image_aspect_ratio" not in options and options["max_new_tokens"] == 1024
    assert generation_options({"temperature": 0.7})[1]["do_sample"] is True
    assert generation_options({"temperature": 0})[1]["do_sample"] is False


@pytest.mark.parametrize("batch_size", [1, 5])
def test_likelihoods_are_the_models_own_loss(parts, docs, batch_size):
    """The processor marks the answer and keeps it out of pre-fusion, the model makes the loss of labels on it."""
    model, processor = parts
    answers = ["red", "the blue square on a white background", "2"]
    pictured = [doc for doc in docs if not any(isinstance(visual, str) for visual in doc["visuals"])]
    adapter = LlavaMiniSimple(model, processor, batch_size=batch_size)
    results = adapter.loglikelihood(score_requests(adapter, pictured, answers))
    scored = iter(results)
    for doc in pictured:
        for answer in answers:
            chat = [{"role": "user", "content": to_content(doc)}, {"role": "assistant", "content": answer}]
            inputs = processor.apply_chat_template(
                [{**message, "content": rename(message["content"])} for message in chat],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
            )
            labels = inputs["input_ids"].masked_fill(inputs.pop("assistant_masks") == 0, -100)
            outputs = model(**inputs, labels=labels)
            greedy = outputs.logits[:, :-1].argmax(-1)[labels[:, 1:] != -100].tolist()
            loss, is_greedy = next(scored)
            assert loss == pytest.approx(outputs.loss.item(), abs=1e-4)  # padding moves the last digits
            assert is_greedy == (greedy == labels[labels != -100].tolist())
    assert any(is_greedy for _, is_greedy in results) and not all(is_greedy for _, is_greedy in results)
    # What lmms-eval makes of any other pair is a string.
    assert unwrap_generation_output(results[0])[0] == results[0] == tuple(results[0])


def rename(content):
    """Parts of lmms-eval as the processor's."""
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else {"type": part["type"], part["type"]: part["url"]} for part in content]


def test_the_right_answer_has_the_lowest_score(parts):
    """Of lmms-eval's choices the lowest counts."""
    adapter = LlavaMiniSimple(*parts, batch_size=3)
    colours = ["red", "blue", "green"]
    docs = [{"visuals": [draw(colour)], "question": "What colour is the circle?"} for colour in colours]
    results = adapter.loglikelihood(score_requests(adapter, docs, colours))
    assert np.argmin([loss for loss, _ in results][0:3]) == 0
    assert [np.argmin([loss for loss, _ in results[i : i + 3]]) for i in (0, 3, 6)] == [0, 1, 2]


def test_several_rounds_are_refused(parts, docs):
    adapter = LlavaMini(*parts)
    with pytest.raises(NotImplementedError, match="one question at a time.*made_up"):
        adapter.generate_until_multi_round(chat_requests(adapter, docs))


def test_what_evens_out_processes_is_not_answered(parts, docs, monkeypatch):
    adapter = LlavaMini(*parts, batch_size=16)
    requests = chat_requests(adapter, docs[:3])
    requests[2].metadata["__padding_only__"] = True
    rows = []
    inner = adapter.reader.collate
    monkeypatch.setattr(adapter.reader, "collate", lambda given: rows.extend(given) or inner(given))
    answers = adapter.generate_until(requests)
    assert len(rows) == 2 and len(answers) == 3 and answers[0] == "red"


def test_a_model_in_training_goes_on_training(parts, docs, expected):
    model, processor = parts
    model.train()
    adapter = LlavaMini(model, processor, batch_size=4)
    try:
        assert adapter.generate_until(chat_requests(adapter, docs)) == expected
        assert model.training
        adapter.clean()
        assert adapter.model is model
    finally:
        model.eval()


def test_long_videos_are_cut_to_max_frames(parts, docs):
    reader = RowReader(parts[1], max_frames=4)
    frames = [reader.read([{"role": "user", "content": to_content(docs[i])}]).visuals[0].source for i in (2, 6)]
    assert [stream.num_frames for stream in frames] == [3, 4]
    assert frames[1].indices == parts[1].video_processor.sample_frames(frames[1].metadata, num_frames=4).tolist()
    per_task = RowReader(parts[1]).read([{"role": "user", "content": to_content(docs[6])}], max_frames=2)
    assert per_task.visuals[0].source.num_frames == 2
    assert per_task.text.count("<video>") == 2


def test_a_folder_of_frames_is_a_video(parts, tmp_path):
    """All of them, in order, whatever the cap: MVBench's episodic reasoning."""
    for i, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (100, 50), colour).save(tmp_path / f"{i:05}.jpg")
    row = RowReader(parts[1], max_frames=2, frames_per_chunk=2).read(
        [{"role": "user", "content": [{"type": "video", "url": str(tmp_path)}, {"type": "text", "text": "What?"}]}]
    )
    frames = torch.cat(list(row.visuals[0].source))
    assert len(frames) == row.visuals[0].source.num_frames == row.text.count("<video>") == 3
    assert frames[:, 0].mean((2, 3)).argmax(1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="folder without"):
        (tmp_path / "empty").mkdir()
        RowReader(parts[1]).read([{"role": "user", "content": [{"type": "video", "url": str(tmp_path / "empty")}]}])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "a.wav"}, "audio.*reads text, images, and videos"),
        ({"type": "video", "url": {"url": "a.mp4", "video_start": 1}}, "given as a file, whole"),
    ],
)
def test_what_is_not_read_is_named(parts, part, message):
    with pytest.raises(ValueError, match=message):
        RowReader(parts[1]).read([{"role": "user", "content": [part]}])


def test_system_prompt_and_chat_template(parts):
    reader = RowReader(parts[1], system_prompt="Be brief.")
    asked = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    assert reader.read(asked).text == "<s>system:Be brief.\nuser:What?\nassistant:"
    assert RowReader(parts[1]).read(asked, chat_template="{{ messages[0].content[0].text }}!").text == "What?!"


@pytest.mark.parametrize("batch_size", ["auto", 0, "2.5"])
def test_batch_sizes_that_are_none(batch_size):
    with pytest.raises(ValueError, match="batch_size.*at least 1"):
        LlavaMini(str(CHECKPOINT), batch_size=batch_size)


def test_kept_answers_are_not_asked_again(docs, expected, tmp_path, monkeypatch):
    def load(checkpoint=CHECKPOINT, **options):
        return LlavaMini(str(checkpoint), batch_size=4, answers=str(tmp_path / "kept"), **options)

    adapter = load()
    assert adapter.generate_until(chat_requests(adapter, docs[:6])) == expected[:6]
    path = tmp_path / "kept/answers_0.jsonl"
    assert len([line for line in path.read_text().splitlines() if line]) == 6
    # As a killed process leaves it: in the midst of a line.
    path.write_bytes(path.read_bytes()[:-20])

    adapter = load()
    asked = []
    inner = adapter._generate
    monkeypatch.setattr(adapter, "_generate", lambda jobs: asked.extend(jobs) or inner(jobs))
    assert adapter.generate_until(chat_requests(adapter, docs)) == expected
    assert len(asked) == len(docs) - 5
    assert len(load().kept.kept) == len(docs)

    # Another length of answers, another precision, another checkpoint, another picture: other answers.
    adapter = load()
    requests = chat_requests(adapter, docs, GREEDY | {"max_new_tokens": 3})
    assert all(adapter.kept.get(adapter._read("generate_until", 0, r).key) is None for r in requests)
    shutil.copytree(CHECKPOINT, tmp_path / "other")
    (tmp_path / "other/model.safetensors").touch()
    others = [load(dtype="bfloat16"), load(tmp_path / "other"), load()]
    changed = [doc | {"visuals": [draw("purple")] * len(doc["visuals"])} for doc in docs if doc["visuals"]]
    for other, given in zip(others, (docs, docs, changed)):
        keys = [other._read("generate_until", 0, request).key for request in chat_requests(other, given)]
        assert not any(map(other.kept.get, keys))


def test_answers_of_a_model_at_hand_are_not_kept(parts, tmp_path):
    with pytest.raises(ValueError, match="can't be kept"):
        LlavaMini(*parts, answers=str(tmp_path))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    types = ["colour", "count", "relation", "caption", "caption of three", "video direction", "video order"]
    return folder, write_tasks(folder, per_type=5, seed=6, types=types)


def test_lmms_evals_scores_are_those_of_the_small_models_own_script(parts, tasks):
    """The whole loop on local tasks: JSON, parquet with pictures inside, clips. The same questions, the same scores."""
    from evaluate import evaluate

    folder, types = tasks
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="llava_mini")
    names = ["tiny_json", "tiny_parquet", "tiny_video"]
    adapter = LlavaMini(*parts, batch_size=4)
    measured = simple_evaluate(model=adapter, tasks=names, task_manager=manager, verbosity="ERROR")
    own = evaluate(CHECKPOINT, per_type=5, seed=6, types=[kind for name in names for kind in types[name]])
    for name in names:
        right = sum(own[kind]["right"] for kind in types[name])
        n = sum(own[kind]["n"] for kind in types[name])
        assert measured["results"][name]["exact_match,none"] == right / n
        assert measured["n-samples"][name]["effective"] == n
    # A score that nothing but right answers in the right places gives.
    assert 0 < measured["results"]["tiny_json"]["exact_match,none"] < 1
    samples = measured["samples"]["tiny_json"]
    assert [sample["doc_id"] for sample in samples] == list(range(len(samples)))


def test_multiple_choice_through_lmms_eval(parts, tasks):
    folder, _ = tasks
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="llava_mini")
    adapter = LlavaMiniSimple(*parts, batch_size=4)
    measured = simple_evaluate(model=adapter, tasks=["tiny_choice"], task_manager=manager, verbosity="ERROR")
    data = json.loads((folder / "data/json.json").read_text())
    assert data and measured["results"]["tiny_choice"]["acc,none"] >= 0.8  # guessing one of six gives 0.17


def test_lmms_eval_finds_the_model():
    from lmms_eval.models import get_model

    assert get_model("llava_mini") is LlavaMini
    assert get_model("llava_mini", force_simple=True) is LlavaMiniSimple
