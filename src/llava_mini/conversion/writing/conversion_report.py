# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What became of every tensor and setting, and the authors' small files. Both are kept in a folder of the output, so that
going back loses nothing.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llava_mini.conversion.mapping.tokenizer_conversion import TOKENIZER_FILES
from llava_mini.conversion.reading.checkpoint_io import write_json


ORIGINAL_FOLDER = "original"
REPORT_FILE = "conversion_report.json"


@dataclass
class Report:
    """
    Args:
        used: names in the output for every tensor of the input.
        ignored: why a tensor or setting of the input is not in the output.
        filled: where a tensor or setting of the output comes from when not from the input.
        not_finite: tensors of the output with NaN or infinite values, which no model should have.
        verified: what was checked afterwards and is right.
    """

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.ignored)} entries ignored, {len(self.filled)} filled in"]
        for verb, entries in (("ignored", self.ignored), ("filled in", self.filled)):
            names_of: dict[str, list[str]] = {}
            for name, reason in entries.items():
                names_of.setdefault(reason, []).append(name)
            for reason, names in names_of.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {verb} {names[0]}{more}: {reason}")
        if self.not_finite:
            more = f" and {len(self.not_finite) - 1} more" if len(self.not_finite) > 1 else ""
            lines.append(f"  WARNING {self.not_finite[0]}{more}: holds NaN or infinite values, as the input does")
        return "\n".join(lines + [f"  verified: {finding}" for finding in self.verified])


def keep_original_files(source: Path, tokenizer_dir: Path, output: Path, report: Report) -> None:
    """Copies configuration and tokenizer of the authors' checkpoint into a folder of `output`, with the report."""
    folder = output / ORIGINAL_FOLDER
    folder.mkdir()
    wanted = [source / name for name in ("config.json", "generation_config.json")]
    for path in wanted + [tokenizer_dir / name for name in TOKENIZER_FILES]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_json(folder / REPORT_FILE, asdict(report))
