# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Answers kept on disk as they are made, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class KeptAnswers:
    """
    A folder of JSON lines, one file a process, each line written at once: a killed run loses what it was working on and
    nothing else. Every process reads what all have written.

    Args:
        folder: where the files are; made when it isn't there.
        rank (`int`): of this process.
        made_by (`str`): what all answers depend on (model, precision, ...); answers made by others are not read.
    """

    def __init__(self, folder: str | os.PathLike, rank: int, made_by: str):
        self.made_by = made_by
        self.path = Path(folder) / f"answers_{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.kept: dict[str, Any] = {}
        for path in sorted(self.path.parent.glob("answers_*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:  # the line that a killed process was writing
                    continue
                self.kept[key] = value

    def key(self, *question: Any) -> str:
        """What one question is kept under."""
        return hashlib.sha256(json.dumps([self.made_by, *question]).encode()).hexdigest()

    def get(self, key: str) -> Any:
        """The answer, or `None`."""
        return self.kept.get(key)

    def add(self, answers: dict[str, Any]):
        """Keeps answers by their keys."""
        self.kept |= answers
        # A line that a killed process left unfinished must not swallow the next one.
        lines = "".join(f"\n{json.dumps(item)}" for item in answers.items()) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(lines)
