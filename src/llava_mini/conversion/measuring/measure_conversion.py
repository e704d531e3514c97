# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Measures a conversion: peak memory, time, and the time in comparison with plainly copying the same files.

    python conversion/make_random_checkpoint.py CHECKPOINT
    python conversion/measure_conversion.py CHECKPOINT OUTPUT [options of the converter]

Both start with the input out of the page cache, where the system lets it be dropped, and end when everything is on
the disk. The copy is deleted again.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from llava_mini.conversion.reading.checkpoint_io import IN_PROGRESS, WEIGHT_FILE_PATTERNS


CONVERTER = ("-m", "llava_mini.conversion.command")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere


def measure(source: Path, output: Path, options: list[str]) -> dict[str, float]:
    """
    Copies the weight files of `source` beside `output`, deletes the copy, converts `source` to `output`.

    Raises:
        ValueError: no weight files, or the conversion fails.
    """
    files = sorted({path for pattern in WEIGHT_FILE_PATTERNS for path in source.glob(pattern)})
    if not files:
        raise ValueError(f"{source} has no weight files: give the directory of a checkpoint.")
    size = sum(path.stat().st_size for path in files)
    copy_seconds = _time_copy(files, output.with_name(output.name + ".copy"))
    _drop_from_cache(files)
    start = time.perf_counter()
    finished = subprocess.run([sys.executable, *CONVERTER, str(source), str(output), *options])
    os.sync()
    seconds = time.perf_counter() - start
    if finished.returncode:
        raise ValueError(f"The conversion failed with exit code {finished.returncode}.")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT
    return {
        "input_gb": size / 1e9,
        "peak_memory_gib": peak / 2**30,
        "seconds": seconds,
        "copy_seconds": copy_seconds,
        "times_the_copy": seconds / copy_seconds,
    }


def _time_copy(files: list[Path], folder: Path) -> float:
    mark = folder / IN_PROGRESS
    if mark.is_file():
        shutil.rmtree(folder)  # a killed run's
    folder.mkdir(parents=True)
    mark.touch()
    try:
        _drop_from_cache(files)
        start = time.perf_counter()
        for path in files:
            shutil.copyfile(path, folder / path.name)
        os.sync()
        return time.perf_counter() - start
    finally:
        shutil.rmtree(folder)


def _drop_from_cache(files: list[Path]) -> None:
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    os.sync()  # only what is on the disk can be dropped
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CHECKPOINT", type=Path, help="directory of the authors' checkpoint")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="directory to write")
    options, converter_options = parser.parse_known_args(arguments)
    try:
        numbers = measure(options.source, options.output, converter_options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: round(value, 2) for name, value in numbers.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
