# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""`llava-mini`: ask about images and videos from a terminal. Built on the public API only."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
    TextStreamer,
)
from transformers.utils import logging

import llava_mini  # noqa: F401 (registers the Auto classes)
from llava_mini.cli_arguments import (
    at_least_0,
    check_model,
    one_line,
    open_share,
    positive,
    sampling_options,
    seed_number,
    share,
    usable_device,
    utf8_text,
)
from llava_mini.demo import add_demo_arguments, check_gradio, find_small_model, run_demo
from llava_mini.evaluation.command import add_evaluate_parser
from llava_mini.serving import add_serve_parser
from llava_mini.versions_llava_mini import describe_versions
from llava_mini.video_streaming import check_skip_still, prepare_streamed_inputs


EXAMPLES = """\
examples:
  llava-mini ask --model DIR --image cat.jpg --query "What is the cat doing?"
  llava-mini ask --model DIR --image before.png --image after.png --query "What has changed?"
  llava-mini ask --model DIR --video holiday.mp4 --query "Where are they going?" --json
  llava-mini chat --model DIR --video lecture.mp4 --keep features
  llava-mini demo
  llava-mini serve DIR --port 8000
  llava-mini convert AUTHORS_DIR DIR --verify
  llava-mini evaluate --model DIR --benchmarks gqa,pope
"""
DTYPES = {"auto": "auto", "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ShowVersions(argparse.Action):
    """`--version`: ours, transformers' and torch's, and whether they are in the tested range."""

    def __call__(self, parser: argparse.ArgumentParser, *_):
        print(describe_versions())
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="llava-mini",
        description="Ask LLaVA-Mini about images and videos.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # An action of its own, since argparse's would join the lines.
    parser.add_argument("--version", action=ShowVersions, nargs=0, help="print the versions that a bug report needs")
    parser.add_argument("--debug", action="store_true", help="show a traceback when something goes wrong")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, text in (
        ("ask", ask, "ask one question and print the answer as it is made"),
        ("chat", chat, "ask about the same images or video as often as you like; an empty line ends"),
    ):
        command = commands.add_parser(
            name, help=text, description=text, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(function=function)
        _add_common_arguments(command)
    text = "a page in the browser: ask about pictures and clips, see what the model looked at and what it took"
    command = commands.add_parser("demo", help=text, description=text)
    command.set_defaults(function=demo)
    add_demo_arguments(command)
    _add_loading_arguments(command)
    add_serve_parser(commands)
    add_evaluate_parser(commands)
    for name, text, function in (
        ("convert", "the authors' checkpoint to ours, or back", convert),
        ("verify", "load a converted checkpoint and check it", verify),
        ("push", "a converted checkpoint to the Hub, with its code and a card", push),
    ):
        # No character starts an option here, so that all of them, --help included, get through.
        command = commands.add_parser(name, help=text, add_help=False, prefix_chars=" ")
        command.add_argument("options", nargs=argparse.REMAINDER)
        command.set_defaults(function=function)
    ask_parser, chat_parser = commands.choices["ask"], commands.choices["chat"]
    ask_parser.add_argument("--query", required=True, type=utf8_text, help="the question")
    ask_parser.add_argument("--json", action="store_true", help="print one JSON object instead of the answer alone")
    ask_parser.add_argument("--num-beams", type=positive(int), default=1, help="beam search with so many beams")
    chat_parser.add_argument(
        "--keep",
        choices=("key_values", "features", "none"),
        default="key_values",
        help="what stays in memory between questions: everything the text reads (fastest), patch features (less "
        "memory), or nothing (videos are read again)",
    )
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", required=True, help="directory or Hub repository of a checkpoint")
    _add_loading_arguments(parser)
    parser.add_argument("--image", action="append", default=[], help="path or URL; may be given several times")
    parser.add_argument("--video", action="append", default=[], help="path or URL; may be given several times")
    parser.add_argument(
        "--fps", type=positive(float), help="frames a second to take from videos (default: the checkpoint's, 1)"
    )
    parser.add_argument("--num-frames", type=positive(int), help="frames to take from each video, instead of --fps")
    parser.add_argument(
        "--skip-still",
        type=at_least_0,
        metavar="LEVELS",
        help="leave out frames whose change since the last one kept is at most so many grey levels (of 255)",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--prefusion-patches", type=share, help="share of each picture's patches that the text reads (default: all)"
    )
    budget.add_argument(
        "--prefusion-mass", type=open_share, help="instead: as many as hold this share of the compressor's attention"
    )
    parser.add_argument("--system", type=utf8_text, help="system message, instead of the default one")
    parser.add_argument(
        "--temperature", type=at_least_0, help="0 takes the likeliest token (default: the checkpoint's)"
    )
    parser.add_argument("--top-p", type=share, help="sample from the likeliest tokens of this total probability")
    parser.add_argument(
        "--max-new-tokens", type=positive(int), default=512, help="length of the answer (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed_number, help="makes sampling repeatable")


def _add_loading_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--device", type=usable_device, help="cuda, cpu, auto, ... (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="default: the checkpoint's")
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--load-8bit", action="store_true", help="8-bit weights (pip install bitsandbytes)")
    bits.add_argument("--load-4bit", action="store_true", help="4-bit weights (pip install bitsandbytes)")
    parser.add_argument("--trust-remote-code", action="store_true", help="for repositories with code of their own")


def load(arguments: argparse.Namespace) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor as the arguments say."""
    check_model(arguments.model)
    quantization = None
    if arguments.load_8bit or arguments.load_4bit:
        quantization = BitsAndBytesConfig(load_in_8bit=arguments.load_8bit, load_in_4bit=arguments.load_4bit)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            arguments.model,
            dtype=DTYPES[arguments.dtype],
            device_map=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            quantization_config=quantization,
            trust_remote_code=arguments.trust_remote_code,
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of {arguments.model} are damaged ({error}): download them again.") from error
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=arguments.trust_remote_code)
    return model.eval(), processor


def check_visuals(arguments: argparse.Namespace):
    """
    Raises:
        ValueError: options about videos that make no sense; said before anything is loaded.
    """
    if arguments.skip_still is not None and not arguments.video:
        raise ValueError("--skip-still leaves out frames of videos, never images, and no --video was given.")
    check_skip_still(arguments.skip_still)


def first_message(arguments: argparse.Namespace, query: str) -> list[dict]:
    """The conversation's beginning: images, videos and the first question."""
    content = [{"type": "image", "url": image} for image in arguments.image]
    content += [{"type": "video", "url": video} for video in arguments.video]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": query}]}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return messages


def prepare(arguments: argparse.Namespace, messages: list[dict], processor: ProcessorMixin) -> BatchFeature:
    """Model inputs; videos come as streams, so that their length does not matter."""
    return prepare_streamed_inputs(
        processor,
        messages,
        arguments.fps,
        arguments.num_frames,
        show_progress=sys.stderr.isatty(),
        skip_still=arguments.skip_still,
    )


def patch_budget(arguments: argparse.Namespace) -> dict:
    """How many patches the arguments want read; the checkpoint's configuration decides else."""
    given = {name: getattr(arguments, name) for name in ("prefusion_patches", "prefusion_mass")}
    return {name: value for name, value in given.items() if value is not None}


def generation_options(arguments: argparse.Namespace) -> dict:
    """What the arguments say about decoding; the checkpoint's generation configuration decides the rest."""
    options: dict = {"max_new_tokens": arguments.max_new_tokens}
    options |= sampling_options(arguments.temperature, arguments.top_p)
    if getattr(arguments, "num_beams", 1) > 1:
        options["num_beams"] = arguments.num_beams
    return options


class AnswerStreamer(TextStreamer):
    """Prints an answer as it grows, without the space that many tokenizers put before its first word."""

    has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False):
        text = text if self.has_begun else text.lstrip()
        self.has_begun = self.has_begun or bool(text)
        super().on_finalized_text(text, stream_end)


def answer(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: dict, options: dict, show: bool
) -> tuple[str, int]:
    """Generates, printing tokens as they come when `show`; returns the answer and its number of tokens."""
    # Beams are decided at the end only, so there is nothing to stream.
    streamed = show and "num_beams" not in options
    streamer = AnswerStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True) if streamed else None
    ids = model.generate(**inputs, **options, streamer=streamer)[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(ids, skip_special_tokens=True).strip()
    if show and not streamed:
        print(text)
    return text, len(ids)


def ask(arguments: argparse.Namespace):
    """`llava-mini ask`."""
    check_visuals(arguments)
    model, processor = load(arguments)
    start = time.perf_counter()
    inputs = prepare(arguments, first_message(arguments, arguments.query), processor).to(model.device)
    prompt = inputs["input_ids"]
    options = generation_options(arguments) | patch_budget(arguments)
    text, num_new = answer(model, processor, inputs, options, show=not arguments.json)
    if arguments.json:
        vision_ids = torch.tensor([processor.image_token_id, processor.video_token_id], device=prompt.device)
        facts = {
            "model": arguments.model,
            "images": arguments.image,
            "videos": arguments.video,
            "frames": [stream.num_frames for stream in inputs.get("pixel_values_videos", [])],
            "times": [stream.times for stream in inputs.get("pixel_values_videos", [])],
            "query": arguments.query,
            "answer": text,
            "prompt_tokens": prompt.shape[1],
            "vision_tokens": int(torch.isin(prompt, vision_ids).sum()),
            "new_tokens": num_new,
            "seconds": round(time.perf_counter() - start, 3),
        }
        print(json.dumps(facts, ensure_ascii=False))


def chat(arguments: argparse.Namespace):
    """`llava-mini chat`: images and videos are encoded once, later questions run text only."""
    check_visuals(arguments)
    model, processor = load(arguments)
    options = generation_options(arguments)
    messages: list[dict] = []
    context = None
    while query := _read_query():
        if messages:
            messages.append({"role": "user", "content": query})
        else:
            messages = first_message(arguments, query)
        inputs = prepare(arguments, messages, processor).to(model.device)
        pixels = {name: inputs.pop(name) for name in ("pixel_values", "pixel_values_videos") if name in inputs}
        if arguments.keep == "none":
            visuals = pixels | patch_budget(arguments)
        else:
            if context is None:
                keep_text = arguments.keep == "key_values"
                budget = patch_budget(arguments)
                context = model.encode_visuals(**pixels, **budget, keep=arguments.keep, keep_text=keep_text)
                print(f"[{context.nbytes / 2**20:.1f} MiB kept]", file=sys.stderr)
            visuals = {"vision_context": context}
        text, _ = answer(model, processor, inputs | visuals, options, show=True)
        messages.append({"role": "assistant", "content": text})


def demo(arguments: argparse.Namespace):
    """`llava-mini demo`."""
    check_gradio()
    # Ends as by Ctrl-C, so that the temporary files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments.model = arguments.model or find_small_model()
    if arguments.model is None:
        raise ValueError(
            "The small model is not here: it comes with a wheel of llava-mini-hf and with its sources "
            "(examples/tiny/checkpoint). Name a checkpoint: --model DIR."
        )
    run_demo(*load(arguments), arguments)


def convert(arguments: argparse.Namespace) -> int:
    """`llava-mini convert`."""
    from llava_mini.conversion.command import main as run

    return run(arguments.options)


def verify(arguments: argparse.Namespace) -> int:
    """`llava-mini verify`."""
    from llava_mini.conversion.writing.verification import main as run

    return run(arguments.options)


def push(arguments: argparse.Namespace) -> int:
    """`llava-mini push`."""
    from llava_mini.conversion.hub import main as run

    return run(arguments.options)


def _read_query() -> str:
    """The next question; an empty line or the input's end is none."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    try:
        return utf8_text(sys.stdin.readline().strip())
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"The question can't be read: {error}.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """
    The command line's entry point.

    Returns:
        0; 2 for what can't be done, which is said in one line; with `--debug` it is raised instead.
    """
    arguments = build_parser().parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if getattr(arguments, "seed", None) is not None:
        torch.manual_seed(arguments.seed)
    try:
        return arguments.function(arguments) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 (whatever a checkpoint, a template or a device makes of it)
        if arguments.debug:
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError))
        kind = "" if expected else f"{type(error).__name__}: "
        hint = "" if expected else " (`llava-mini --debug ...` shows where)"
        if not expected and (getattr(arguments, "load_8bit", False) or getattr(arguments, "load_4bit", False)):
            hint += "; not every model can be quantised: try without --load-8bit and --load-4bit"
        print(f"llava-mini: {kind}{one_line(error)}{hint}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
