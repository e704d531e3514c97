# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
`llava-mini evaluate`: lmms-eval's own command, a benchmark at a time, and its scores beside the paper's. What failed is
named and the others go on; what is done is not done again.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from llava_mini.cli_arguments import check_model, positive
from llava_mini.evaluation import TASKS
from llava_mini.evaluation.report import Result, failed, other_results, paper_results, read_paper, to_json, to_markdown
from llava_mini.versions_llava_mini import PACKAGE_VERSION


EXAMPLES = """\
examples:
  llava-mini evaluate --model DIR --benchmarks gqa,pope --batch-size 16 --output results
  llava-mini evaluate --model DIR --benchmarks all --limit 50 --output try
  llava-mini evaluate --model DIR --benchmarks all --output results --resume
  llava-mini evaluate --model DIR --benchmarks mmmu_val --output results -- --num_fewshot 0
what follows -- goes to lmms-eval as it is
"""
SETS = ("image", "video", "all")
# Options that go to the model.
MODEL_OPTIONS = (
    "dtype", "device_map", "load_8bit", "load_4bit", "fps", "max_frames", "vision_memory_budget", "image_backend",
    "trust_remote_code",
)  # fmt: skip
# What the results depend on; a run is resumed with the same.
SETTINGS = (
    "model", "limit", "batch_size", "dtype", "load_8bit", "load_4bit", "fps", "max_frames", "image_backend",
    "force_simple", "against",
)  # fmt: skip
# The first exception in a failed run's log is the reason; the others follow from it.
EXCEPTION = re.compile(r"^(?:\[\w+\]:)?[\w.]*(?:Error|Exception|NotFound): (.+)", re.MULTILINE)
# What lmms-eval's tasks log when a judge gave no verdict; they count the answer as wrong and go on.
NO_VERDICT = re.compile(r"attempts failed|Error for Question ID")
TABLE, TABLE_JSON, SETTINGS_FILE, RESULT_FILE, LOG = (
    "table.md",
    "results.json",
    "settings.json",
    "result.json",
    "log.txt",
)


def add_evaluate_parser(commands) -> None:
    """`llava-mini evaluate`'s arguments."""
    text = "evaluate a checkpoint on the paper's benchmarks, or on any task of lmms-eval"
    parser = commands.add_parser(
        "evaluate", help=text, description=text, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(function=evaluate)
    names = ", ".join(read_paper()["benchmarks"])
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub repository of a checkpoint")
    add("--benchmarks", required=True, help=f"comma-separated: image, video, all, {names}, or tasks of lmms-eval")
    add("--output", type=Path, default=Path("evaluation"), help="folder of all results (default: %(default)s)")
    add("--resume", action="store_true", help="go on with what --output holds")
    add("--limit", type=positive(int), help="questions of each task")
    add("--batch-size", type=positive(int), default=1, help="questions at a time (default: %(default)s)")
    add("--processes", type=positive(int), default=1, help="processes, a GPU each (default: %(default)s)")
    add("--against", choices=list(read_paper()["models"]), default="llama-3.1-8b", help="column of the paper's table 1")
    add("--include-path", type=Path, help="folder of more tasks for lmms-eval")
    add("--force-simple", action="store_true", help="for tasks that are scored by likelihood (*_ppl)")
    add(
        "--image-backend", choices=("pil", "torchvision"), default="pil", help="pil gives the authors' pixels (default)"
    )
    add("--dtype", default="auto", help="default: the checkpoint's; the authors' is float16")
    add("--device", help="cuda, cpu, ... (default: cuda if there is one)")
    add("--device-map", help="auto spreads the model over all GPUs")
    add("--load-8bit", action="store_true", help="8-bit weights (pip install bitsandbytes)")
    add("--load-4bit", action="store_true", help="4-bit weights (pip install bitsandbytes)")
    add("--fps", type=positive(float), help="frames a second to take from videos (default: the checkpoint's, 1)")
    add("--max-frames", type=positive(int), help="frames to take from a video at most")
    add("--vision-memory-budget", help="what the vision side may use at a time, such as 4GB")
    add("--trust-remote-code", action="store_true", help="for repositories with code of their own")
    add("more", nargs="*", metavar="-- ...", help="arguments for lmms-eval")


def evaluate(arguments: argparse.Namespace):
    """
    Runs the benchmarks and prints the table.

    Raises:
        ValueError: arguments that can't be; every benchmark failed.
        ImportError: there is no lmms-eval.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ImportError("There is no lmms-eval here: pip install 'llava-mini-hf[eval]'.")
    check_model(arguments.model)
    names = choose(arguments.benchmarks)
    settings = describe(arguments)
    prepare_output(arguments, settings)
    results: list[Result] = []
    for name in names:
        results += run_benchmark(name, arguments)
        for file, text in ((TABLE, to_markdown(results, settings)), (TABLE_JSON, to_json(results, settings))):
            (arguments.output / file).write_text(text, encoding="utf-8")
    print(to_markdown(results, settings))
    if broken := list(dict.fromkeys(r.benchmark for r in results if r.note.startswith("failed: "))):
        raise ValueError(f"No score for {', '.join(broken)}: the table says why, the logs in {arguments.output} more.")


def choose(asked: str) -> list[str]:
    """
    The benchmarks of a comma-separated list, each once.

    Raises:
        ValueError: nothing is asked for.
    """
    known = read_paper()["benchmarks"]
    names = []
    for name in filter(None, (part.strip() for part in asked.split(","))):
        names += [own for own in known if name in ("all", known[own]["kind"])] if name in SETS else [name]
    if not names:
        raise ValueError(f"`--benchmarks` is {asked!r}: name some of {', '.join([*SETS, *known])}.")
    return list(dict.fromkeys(names))


def describe(arguments: argparse.Namespace) -> dict:
    """Settings and versions, as the table and the results say them."""
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    packages = {name: version(name) for name in ("lmms-eval", "transformers", "torch")}
    return settings | {"more": " ".join(arguments.more), "llava-mini-hf": PACKAGE_VERSION, **packages}


def prepare_output(arguments: argparse.Namespace, settings: dict):
    """
    Raises:
        ValueError: the folder holds another run, or is to be resumed and was made otherwise.
    """
    path = arguments.output / SETTINGS_FILE
    if path.exists():
        made = json.loads(path.read_text(encoding="utf-8"))
        if not arguments.resume:
            raise ValueError(f"{arguments.output} holds a run: go on with it by --resume, or give another --output.")
        if changed := [
            f"{name} {made.get(name)!r}, not {settings[name]!r}"
            for name in settings
            if made.get(name) != settings[name]
        ]:
            raise ValueError(f"{arguments.output} was made with {'; '.join(changed)}: resume with the same.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def run_benchmark(name: str, arguments: argparse.Namespace) -> list[Result]:
    """One benchmark's scores, kept from before or made now; or what failed."""
    benchmark = read_paper()["benchmarks"].get(name)
    folder = arguments.output / name
    judge = None
    if benchmark and "judge" in benchmark:
        judge = os.environ.get("MODEL_VERSION") or benchmark["judge"]
    try:
        if not (folder / RESULT_FILE).exists():
            if judge and not os.environ.get("OPENAI_API_KEY"):
                raise ValueError(
                    f"its answers are scored by a judge ({judge}): set OPENAI_API_KEY, and for another one "
                    "OPENAI_API_URL and MODEL_VERSION"
                )
            run_lmms_eval(name, folder, arguments, judge)
        measured = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        found = paper_results(name, measured, arguments.against, judge) if benchmark else other_results(name, measured)
        if not found:
            raise ValueError("lmms-eval gave no score")
    except ValueError as error:
        print(f"{name}: failed, {error}", file=sys.stderr)
        return [failed(name, str(error))]
    print(f"{name}: " + ", ".join(f"{r.score_name} {r.score}" for r in found), file=sys.stderr)
    return found


def run_lmms_eval(name: str, folder: Path, arguments: argparse.Namespace, judge: str | None):
    """
    lmms-eval's command in a process of its own; its results file becomes `RESULT_FILE`.

    Raises:
        ValueError: it ends without results; with its reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({"MODEL_VERSION": judge} if judge else {})
    # Some of its tasks read this without a default.
    environment.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    before = set(folder.rglob("*_results.json"))
    print(f"{name}: running, its log is {folder / LOG}", file=sys.stderr)
    with (
        open(folder / LOG, "ab") as log,
        # Through a pipe, so that the child ends soon after this process, however this one ends.
        subprocess.Popen(
            command_line(name, folder, arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        start = log.tell()
        while chunk := process.stdout.read1():
            log.write(chunk)
            log.flush()
    made = sorted(set(folder.rglob("*_results.json")) - before)
    output = (folder / LOG).read_bytes()[start:].decode(errors="replace")
    if not made:
        raise ValueError(find_reason(output) or f"lmms-eval ended with {process.returncode}")
    if judge and (count := len(NO_VERDICT.findall(output))):
        raise ValueError(f"the judge gave no verdict {count} times, which lmms-eval counts as wrong answers")
    made[-1].replace(folder / RESULT_FILE)


def find_reason(log: str) -> str:
    """What a failed run's log gives as the reason: its first exception, or else its last line."""
    if found := EXCEPTION.search(log):
        return found[1].strip()
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def command_line(name: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """
    Raises:
        ValueError: something that lmms-eval's `--model_args` can't hold.
    """
    model = {"pretrained": arguments.model, "answers": folder / "answers"}
    model |= {option: getattr(arguments, option) for option in MODEL_OPTIONS}
    model = {option: str(value) for option, value in model.items() if value not in (None, False)}
    if bad := [value for value in model.values() if any(sign in value for sign in ",={}[]'\"")]:
        raise ValueError(f"{bad[0]} has a sign that lmms-eval's --model_args can't hold: use another path")
    launcher = ["-m"]
    if arguments.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(arguments.processes), "-m"]
    own = read_paper()["benchmarks"].get(name)
    line = [sys.executable, *launcher, "lmms_eval", "--model", "llava_mini", "--tasks", own["task"] if own else name]
    line += ["--model_args", ",".join(f"{option}={value}" for option, value in model.items())]
    line += ["--batch_size", str(arguments.batch_size), "--output_path", str(folder), "--log_samples"]
    line += ["--include_path", str(TASKS if own or not arguments.include_path else arguments.include_path)]
    if arguments.device:
        line += ["--device", arguments.device]
    if arguments.limit is not None:
        line += ["--limit", str(arguments.limit)]
    if arguments.force_simple:
        line.append("--force_simple")
    return [*line, *arguments.more]
