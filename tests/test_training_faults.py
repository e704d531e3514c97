# ruff: noqa: F811 (fixtures have the names of arguments)
"""examples/training against bad records, data without answers and runs that diverge; evaluation over mixed batches."""

import json
import re
import sys

import conversation_data
import numpy as np
import pytest
import torch
import train
from conversation_data import IGNORED, ConversationCollator, ConversationDataset, to_messages
from llava_mini_trainer import LlavaMiniTrainer, LlavaMiniTrainingArguments
from safetensors.torch import load_file
from test_training import RECORDS, arguments, checkpoint, make_processor, media, turns  # noqa: F401 (two are fixtures)

from llava_mini import LlavaMiniForConditionalGeneration


QUESTION = "<image>\nWhat?"
BAD_RECORDS = {
    "a number": (5, "no object with `conversations`"),
    "a list": ([], "no object with `conversations`"),
    "nothing": (None, "no object with `conversations`"),
    "no conversations": ({"image": "a.png"}, "no `conversations`"),
    "conversations null": ({"conversations": None}, "no `conversations`"),
    "conversations empty": ({"conversations": []}, "no `conversations`"),
    "conversations a text": ({"conversations": "hello"}, "no `conversations`"),
    "conversations a dict": ({"conversations": {"from": "human", "value": "x"}}, "no `conversations`"),
    "turn a text": ({"conversations": ["hello"]}, "a turn without a text"),
    "turn null": ({"conversations": [None]}, "a turn without a text"),
    "turn without value": ({"conversations": [{"from": "human"}]}, "a turn without a text"),
    "value null": ({"conversations": [{"from": "human", "value": None}]}, "a turn without a text"),
    "value a number": ({"conversations": [{"from": "gpt", "value": 3}]}, "a turn without a text"),
    "value a list": ({"conversations": [{"from": "gpt", "value": ["x"]}]}, "a turn without a text"),
    "turn without from": ({"conversations": [{"value": "x"}]}, "speaker None"),
    "unknown speaker": ({"conversations": [{"from": "cat", "value": "x"}]}, "speaker 'cat'"),
    "speaker a list": ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "speaker .'gpt'"),
    "only a question": ({"conversations": turns("What?")}, "no answer to learn"),
    "answer empty": ({"conversations": turns("What?", "")}, "no answer to learn"),
    "answers blank": ({"conversations": turns("What?", " \n", "And?", "\t")}, "no answer to learn"),
    "placeholder without image": ({"conversations": turns(QUESTION, "x")}, "more <image> placeholders"),
    "image without placeholder": ({"image": "a.png", "conversations": turns("What?", "x")}, "without a placeholder"),
    "two placeholders": ({"image": "a.png", "conversations": turns("<image>" + QUESTION, "x")}, "more <image>"),
    "two images": ({"image": ["a.png", "b.png"], "conversations": turns(QUESTION, "x")}, "without a placeholder"),
    "video placeholder": ({"image": "a.png", "conversations": turns("<video>\nWhat?", "x")}, "more <video>"),
    "placeholder in an answer": (
        {"image": "a.png", "conversations": turns("What?", "<image>")},
        "placeholder .* 'gpt'",
    ),
    "no such image": ({"image": "no.png", "conversations": turns(QUESTION, "x")}, "no.png' is no file"),
    "image a folder": ({"image": ".", "conversations": turns(QUESTION, "x")}, "is no file"),
    "image a number": ({"image": 5, "conversations": turns(QUESTION, "x")}, "image 5 is no file"),
    "image a dict": ({"image": {"path": "a.png"}, "conversations": turns(QUESTION, "x")}, "is no file"),
    "image null in a list": ({"image": [None], "conversations": turns(QUESTION, "x")}, "more <image>"),
    "image empty": ({"image": "empty", "conversations": turns(QUESTION, "x")}, "empty can't be opened"),
    "image a text": ({"image": "data.json", "conversations": turns(QUESTION, "x")}, "data.json can't be opened"),
    "image a video": ({"image": "c.mp4", "conversations": turns(QUESTION, "x")}, "c.mp4 can't be opened"),
    "video empty": ({"video": "empty", "conversations": turns(QUESTION, "x")}, "empty can't be opened"),
    "video a text": ({"video": "data.json", "conversations": turns(QUESTION, "x")}, "data.json can't be opened"),
    "no such video": ({"video": "no.mp4", "conversations": turns("<video>", "x")}, "no.mp4' is no file"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_records_are_told_before_training_by_file_and_place(media, tmp_path, monkeypatch, capsys, name):
    record, message = BAD_RECORDS[name]
    (media / "empty").touch()
    if isinstance(record, dict):
        record = {"id": "spoilt"} | record
    path = tmp_path / "spoilt.json"
    path.write_text(json.dumps([*RECORDS, record]))
    values = arguments(media, tmp_path / "no model is looked at", tmp_path / "output")
    values[values.index("--data") + 1] = str(path)
    monkeypatch.setattr(sys, "argv", ["train.py", *values])
    monkeypatch.setattr(train.LlavaMiniProcessor, "from_pretrained", lambda _: None)
    assert train.run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: {path}, record 4 (from 0): ")
    assert not isinstance(record, dict) or "Record spoilt" in line
    with pytest.raises(ValueError, match=message):
        ConversationDataset.from_files([path], media_folder=media).check(show_progress=False)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"5", b"\xff\xfe", b'{"conversations": []}'])
def test_bad_files_are_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="data.json (can't be read as JSON|holds no list)"):
        ConversationDataset.from_files([path])
    with pytest.raises(ValueError, match="no.json can't be read"):
        ConversationDataset.from_files([tmp_path / "no.json"])
    path.write_text(json.dumps(RECORDS))
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="The weight of .*data.json is"):
            ConversationDataset.from_files([path], [weight])


def test_good_records_pass_once_each(media, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(conversation_data, "check_media", seen.append)
    ConversationDataset.from_files([media / "data.json"], [2.5], media).check()
    assert len(seen) == len(RECORDS)
    assert "Checking records: 100%" in capsys.readouterr().err
    monkeypatch.undo()
    ConversationDataset.from_files([media / "data.json"], None, media).check(show_progress=False)


def command(media, checkpoint, output, *more):
    return ["train.py", *arguments(media, checkpoint, output, *more)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning_rate", "1e30", "--max_steps", "5"], "(loss is|gradients are) no finite numbers"),
        (["--learning_rate", "inf", "--max_steps", "1"], "weights are no finite numbers"),
        (["--max_length", "60", "--max_steps", "1"], "no answer within `max_length`"),
    ],
)
@pytest.mark.parametrize("filtered", ["true", "false"])
def test_a_run_that_is_lost_ends_so_and_saves_nothing(
    media, checkpoint, tmp_path, monkeypatch, capsys, options, message, filtered
):
    good = tmp_path / "output" / "model.safetensors"
    good.parent.mkdir()
    good.write_bytes(b"what was good")
    more = ["--save_strategy", "steps", "--save_steps", "1", "--logging_nan_inf_filter", filtered, *options]
    data = tmp_path / "long.json"
    data.write_text(json.dumps([{"conversations": turns("why " * 40, "because")}] * 4))
    values = command(media, checkpoint, good.parent, *more)
    if "--max_length" in options:
        values[values.index("--data") + 1] = str(data)
    monkeypatch.setattr(sys, "argv", values)
    assert train.run() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert re.search(message, line)
    assert good.read_bytes() == b"what was good"
    for path in good.parent.rglob("checkpoint-*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_evaluation_and_prediction_over_mixed_batches(media, checkpoint, tmp_path):
    """Batches with pictures, with a video and with text alone: what only some outputs have is not gathered."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    options = LlavaMiniTrainingArguments(tmp_path, use_cpu=True, report_to="none", per_device_eval_batch_size=1)
    collator = ConversationCollator(make_processor(), always_visual=False)
    trainer = LlavaMiniTrainer(model=model, args=options, data_collator=collator)
    dataset = ConversationDataset(RECORDS, media)
    metrics = trainer.evaluate(dataset)
    losses = [model(**collator([to_messages(record, media)])).loss.item() for record in RECORDS]
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    prediction = trainer.predict(dataset)
    assert prediction.metrics["test_loss"] == pytest.approx(metrics["eval_loss"])
    assert prediction.predictions.shape[:2] == prediction.label_ids.shape and len(prediction.predictions) == 4
    for row, record in enumerate(RECORDS):
        batch = collator([to_messages(record, media)])
        with torch.no_grad():
            logits = model(**batch).logits[0]
        np.testing.assert_allclose(prediction.predictions[row, : len(logits)], logits.numpy(), atol=1e-5)
        assert (prediction.label_ids[row][: len(logits)] == batch["labels"][0].numpy()).all()
        assert (prediction.label_ids[row][len(logits) :] == IGNORED).all()
