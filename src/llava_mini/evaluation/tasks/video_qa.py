# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""MSVD-QA and MSRVTT-QA in the files of Video-ChatGPT's zero-shot evaluation, which the authors use."""

import json
import os
from pathlib import Path

import datasets


DATA = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "GPT_Zero_Shot_QA"
MSVD, MSRVTT = DATA / "MSVD_Zero_Shot_QA", DATA / "MSRVTT_Zero_Shot_QA"
MSVD_QUESTIONS = {"test": str(MSVD / "test_q.json")}
MSRVTT_QUESTIONS = {"test": str(MSRVTT / "test_q.json")}
VIDEO_FILES = (".mp4", ".avi", ".mkv", ".webm", ".mov")


def add_answers(folder: Path, questions: datasets.Dataset) -> datasets.Dataset:
    """
    Questions with the `answer` and `type` of the answers' file.

    Raises:
        ValueError: a question without an answer.
    """
    answers = {item["question_id"]: item for item in json.loads((folder / "test_a.json").read_text(encoding="utf-8"))}
    absent = [question for question in questions["question_id"] if question not in answers]
    if absent:
        raise ValueError(f"{folder / 'test_a.json'} has no answer to question {absent[0]}.")
    return questions.map(
        lambda doc: {key: answers[doc["question_id"]].get(key, "") for key in ("answer", "type")},
        load_from_cache_file=False,
    )


def find_video(folder: Path, doc: dict) -> list[str]:
    """
    The file of a question's video.

    Raises:
        ValueError: there is none.
    """
    for suffix in VIDEO_FILES:
        path = folder / "videos" / f"{doc['video_name']}{suffix}"
        if path.is_file():
            return [str(path)]
    raise ValueError(f"There is no video {doc['video_name']} ({', '.join(VIDEO_FILES)}) in {folder / 'videos'}.")


def add_msvd_answers(questions: datasets.Dataset) -> datasets.Dataset:
    """See `add_answers`."""
    return add_answers(MSVD, questions)


def add_msrvtt_answers(questions: datasets.Dataset) -> datasets.Dataset:
    """See `add_answers`."""
    return add_answers(MSRVTT, questions)


def msvd_video(doc: dict) -> list[str]:
    """See `find_video`."""
    return find_video(MSVD, doc)


def msrvtt_video(doc: dict) -> list[str]:
    """See `find_video`."""
    return find_video(MSRVTT, doc)
