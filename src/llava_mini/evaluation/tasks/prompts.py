# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The authors' prompts and scores where lmms-eval's are others; `doc` is one question of lmms-eval's data. Sources: their
repository (ictnlp/LLaVA-Mini, 2025-06-29), llavamini/eval/.
"""

import re


ONE_LETTER = "Answer with one letter."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
# The authors go on with two examples for each benchmark, whose words are not known here.
FULL_SENTENCE = (
    "Answer the question based on the video. Provide a complete sentence that directly mirrors the phrasing of the "
    "question and focuses on giving a clear, relevant answer."
)
# What lies between the first and the last sentence is LLoVi's prompt, which the known parts are from.
FIRST_PERSON = (
    "You are a helpful expert in first person view video analysis. Please provide a single-letter answer (A, B, C, D, "
    "E) to the following multiple-choice question, and your answer must be one of the letters (A, B, C, D, or E). You "
    "must not provide any other response or explanation."
)
LETTERS = "ABCDE"
OPTION = re.compile(r"\s*\(?([A-Z])[).:]\s*(.*)")


def options_of(lines: list[str]) -> str:
    """Options as the authors write them, a line each."""
    return "\n".join(f"({chr(ord('A') + i)}) {line}" for i, line in enumerate(lines))


def ask(question: str, options: list[str]) -> str:
    """The prompt of MVBench and MLVU."""
    return f"Question: {question}\nOptions:\n{options_of(options)}\n{ONE_LETTER}"


def mmbench(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """model_vqa_mmbench.py: hint, question, options, the English suffix in both languages."""
    hint = [doc["hint"]] if is_given(doc.get("hint")) else []
    options = [f"{letter}. {doc[letter]}" for letter in LETTERS if is_given(doc.get(letter))]
    return "\n".join([*hint, doc["question"], *options, OPTION_LETTER])


def is_given(value: str | float | None) -> bool:
    """Whether a cell of MMBench's table holds something; empty ones come in several forms."""
    return isinstance(value, str) and value.lower() not in ("", "nan", "none")


def mvbench(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Question and candidates."""
    return ask(doc["question"], doc["candidates"])


def mlvu(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Question and candidates, which lmms-eval's data hold as lines of the question."""
    lines = [line for line in doc["question"].strip().splitlines() if line.strip()]
    options = [match for line in lines[1:] if (match := OPTION.fullmatch(line))]
    if not options:
        raise ValueError(f"A question of MLVU has no options as lines '(A) ...': {doc['question']!r:.200}")
    question = lines[0].removeprefix("Question:").strip()
    return ask(question, [match[2] for match in options])


def egoschema(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Question and options, for an expert."""
    options = [match[2] if (match := OPTION.fullmatch(option)) else option for option in doc["option"]]
    return f"{FIRST_PERSON}\n{ask(doc['question'], options)}"


def video_qa(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """MSVD-QA, MSRVTT-QA and ActivityNet-QA."""
    return f"{FULL_SENTENCE}\n\n{doc['question']}"


def answered_letter(answer: str) -> str:
    """What the authors compare with the right letter: the character before the first ")", or else the whole answer."""
    return answer[: answer.index(")")][-1:] if ")" in answer else answer


def score_mvbench(doc: dict, results: list[str]) -> dict:
    """As lmms-eval's, which leaves out empty answers: here they are wrong."""
    right = chr(ord("A") + doc["candidates"].index(doc["answer"]))
    score = int(answered_letter(results[0]) == right)
    return {"mvbench_accuracy": {"pred_answer": results[0] or "-", "gt_answer": right, "score": score}}


def score_mlvu(doc: dict, results: list[str]) -> dict:
    """As lmms-eval's."""
    facts = {"question_id": doc["question"], "task_type": doc["task_type"], "answer": doc["answer"]}
    return {"mlvu_percetion_score": facts | {"pred_answer": answered_letter(results[0])}}
