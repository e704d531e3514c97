# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
LLaVA-Mini as a model of lmms-eval:

    lmms-eval --model llava_mini --model_args pretrained=DIR --tasks mme --batch_size 8

and inside a training run, on the model that is being trained:

    lmms_eval.evaluator.simple_evaluate(model=LlavaMini(model, processor, batch_size=8), tasks=["mme"])
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm.auto import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

import llava_mini  # registers the Auto classes
from llava_mini.evaluation.answers import KeptAnswers
from llava_mini.evaluation.rows import IMAGE_FILES, Row, RowReader
from llava_mini.versions_llava_mini import PACKAGE_VERSION
from llava_mini.video_streaming import DEFAULT_FRAMES_PER_CHUNK


# Requests that are read, sorted by length and put into batches at a time, in batches: enough for batches of about equal
# length, few enough pictures in memory.
WINDOW_BATCHES = 16
# Length of an answer where the task says nothing.
DEFAULT_NEW_TOKENS = 1024
CHAT_TEMPLATES = Path(llava_mini.__file__).parent / "chat_templates"
# Options of tasks that are ours and not `generate`'s.
CHAT_TEMPLATE, MAX_FRAMES = "llava_mini_chat_template", "llava_mini_max_frames"


@dataclass
class Job:
    """
    One request, read.

    Args:
        index (`int`): its place among the requests.
        row (`Row`): prompt and pictures.
        options (`dict`): of generation; equal within a batch.
        key (`str`): what its answer is kept under.
    """

    index: int
    row: Row
    options: dict
    key: str


class Likelihood(tuple, GenerationResult):
    """`(loss, is_greedy)`. lmms-eval 0.7.3 makes a string of any tuple that a model returns, but for its own class."""

    def __init__(self, pair: tuple[float, bool]):
        pass  # the tuple is made, and there is nothing else

    @property
    def text(self) -> tuple[float, bool]:
        """What lmms-eval goes on with."""
        return tuple(self)


class LlavaMini(lmms):
    """
    Args:
        pretrained (`str` or `PreTrainedModel`): a checkpoint's directory or Hub repository, or a model at hand, which
            stays as it is.
        processor (`LlavaMiniProcessor`, *optional*): of a model at hand; by default that of the checkpoint.
        batch_size (`int`): rows at a time.
        device (`str`, *optional*), device_map (`str`, *optional*): where the model is; by default this process's GPU if
            there is one.
        dtype (`str`): "auto" is the checkpoint's.
        load_8bit, load_4bit (`bool`): quantise the language model.
        fps, max_frames, frames_per_chunk: see `RowReader`; videos are streamed.
        vision_memory_budget (`int` or `str`, *optional*): bytes that the vision side may use at a time.
        image_backend (`str`, *optional*): "pil" for the authors' exact pixels, "torchvision" for speed; by default the
            checkpoint's.
        system_prompt (`str`, *optional*): instead of the chat template's own.
        answers (`str`, *optional*): a folder in which answers are kept as they are made, and looked up.
        trust_remote_code (`bool`): for repositories with code of their own.

    Raises:
        ValueError: a batch size that is no number, 8 and 4 bits at once, what LLaVA-Mini can't answer.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        processor: ProcessorMixin | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        load_8bit: bool = False,
        load_4bit: bool = False,
        fps: float | None = None,
        max_frames: int | None = None,
        frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
        vision_memory_budget: int | str | None = None,
        image_backend: str | None = None,
        system_prompt: str | None = None,
        answers: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}, but has to be a number of rows, at least 1.")
        if load_8bit and load_4bit:
            raise ValueError("Pass one of `load_8bit` and `load_4bit`.")
        self.batch_size = int(batch_size)
        self.vision_memory_budget = vision_memory_budget
        self.is_live = not isinstance(pretrained, (str, os.PathLike))
        # As lmms-eval's evaluator reads them; accelerate knows of no other process on CPUs.
        self._rank, self._world_size = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        if self.is_live:
            self.model = extract_model_from_parallel(pretrained)
            source = self.model.config._name_or_path
        else:
            bits = BitsAndBytesConfig(load_in_8bit=load_8bit, load_in_4bit=load_4bit)
            self.model = AutoModelForImageTextToText.from_pretrained(
                pretrained,
                dtype=dtype,
                device_map=device_map or device or own_device(),
                quantization_config=bits if load_8bit or load_4bit else None,
                trust_remote_code=trust_remote_code,
            )
            source = pretrained
        if processor is None:
            options = {} if image_backend is None else {"backend": image_backend}
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
        self.processor = processor
        self.reader = RowReader(processor, fps, max_frames, frames_per_chunk, system_prompt)
        self.kept = None
        if answers is not None:
            if self.is_live:
                raise ValueError("Answers of a model at hand can't be kept: it may change. Leave `answers` out.")
            settings = [dtype, load_8bit, load_4bit, fps, image_backend, PACKAGE_VERSION]
            self.kept = KeptAnswers(answers, self.rank, json.dumps([identify(source), *settings]))

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        return self.model.device

    @property
    def tokenizer(self):
        """The processor's."""
        return self.processor.tokenizer

    def clean(self):
        """Frees the model before the answers are judged, unless it is somebody else's."""
        if not self.is_live:
            super().clean()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests."""
        return self._run("generate_until", requests, self._generate)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """
        How likely given answers are, each with its end, and whether greedy decoding would give them. What is returned
        is the mean loss of the answer's tokens: of lmms-eval's choices the lowest counts, against what it is called.
        """
        return [Likelihood(pair) for pair in self._run("loglikelihood", requests, self._score)]

    def generate_until_multi_round(self, requests: list[Instance]):
        """
        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "LLaVA-Mini's adapter answers one question at a time: tasks of several rounds "
            f"({requests[0].task_name if requests else 'such as this'}) can't be run with it."
        )

    def _run(self, kind: str, requests: list[Instance], compute: Callable[[list[Job]], list]) -> list:
        results: list[Any] = ["" if kind == "generate_until" else (0.0, False)] * len(requests)
        # What evens out the number of requests between processes is answered by nobody: none waits for another here.
        wanted = [i for i, request in enumerate(requests) if not request.metadata.get("__padding_only__")]
        size = self.batch_size * WINDOW_BATCHES
        with self._evaluating(), tqdm(total=len(wanted), desc=kind, disable=self.rank != 0) as bar:
            for start in range(0, len(wanted), size):
                jobs = [self._read(kind, i, requests[i]) for i in wanted[start : start + size]]
                open_jobs = []
                for job in jobs:
                    answer = self.kept and self.kept.get(job.key)
                    if answer is None:
                        open_jobs.append(job)
                    else:
                        results[job.index] = answer
                bar.update(len(jobs) - len(open_jobs))
                for batch in make_batches(open_jobs, self.batch_size):
                    answers = compute(batch)
                    for job, answer in zip(batch, answers, strict=True):
                        results[job.index] = answer
                    if self.kept:
                        self.kept.add({job.key: answer for job, answer in zip(batch, answers)})
                    bar.update(len(batch))
        return results

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout and gradients; a model that was training goes on training."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def _read(self, kind: str, index: int, request: Instance) -> Job:
        messages, answer, options = self._ask(kind, request)
        options = dict(options)
        template = options.pop(CHAT_TEMPLATE, None)
        max_frames = options.pop(MAX_FRAMES, None)
        if template is not None:
            template = (CHAT_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
        row = self.reader.read(messages, answer, template, max_frames)
        key = ""
        if self.kept:
            visuals = [visual.key for visual in row.visuals]
            question = (request.task_name, request.doc_id, request.idx, row.text, visuals, options)
            key = self.kept.key(kind, *question)
        return Job(index, row, options, key)

    def _ask(self, kind: str, request: Instance) -> tuple[list[dict], str | None, dict]:
        """A request's messages, the answer to be scored, and the options of generation."""
        if kind == "loglikelihood":
            return ask_simply(self.task_dict, request)
        _, doc_to_messages, options, doc_id, task, split = request.args
        return doc_to_messages(self.task_dict[task][split][doc_id]), None, options

    def _generate(self, jobs: list[Job]) -> list[str]:
        rows = [job.row for job in jobs]
        stops, options = generation_options(jobs[0].options)
        batch = self._to_device(self.reader.share(self.model, rows, self.vision_memory_budget))
        ids = self.model.generate(**batch, **options, vision_memory_budget=self.vision_memory_budget)
        texts = self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [cut(text.strip(), stops) for text in texts]

    def _score(self, jobs: list[Job]) -> list[tuple[float, bool]]:
        batch = self.reader.share(self.model, [job.row for job in jobs], self.vision_memory_budget)
        answer = batch.pop("answer_mask")[:, 1:].bool()
        # Logits of the positions from the first answer on; the one before predicts it.
        first = int(answer.any(0).nonzero()[0])
        batch = self._to_device(batch)
        kept = batch["input_ids"].shape[1] - first
        outputs = self.model(**batch, logits_to_keep=kept, vision_memory_budget=self.vision_memory_budget)
        logits = outputs.logits[:, :-1].float()
        labels = batch["input_ids"][:, first + 1 :].to(logits.device)
        answer = answer[:, first:].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        means = (losses * answer).sum(1) / answer.sum(1)
        is_greedy = ((logits.argmax(-1) == labels) | ~answer).all(1)
        return list(zip(means.tolist(), is_greedy.tolist()))

    def _to_device(self, batch: dict) -> dict:
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
        }


class LlavaMiniSimple(LlavaMini):
    """
    The same for `--force_simple`: what lmms-eval has no messages for, which is all that is scored by likelihood
    (`*_ppl`, multiple choice).
    """

    is_simple = True

    def _ask(self, kind: str, request: Instance) -> tuple[list[dict], str | None, dict]:
        return ask_simply(self.task_dict, request)


def ask_simply(task_dict: dict, request: Instance) -> tuple[list[dict], str | None, dict]:
    """A request of a text, an answer or options, and a function that gives pictures: messages, answer, options."""
    text, second, *rest = request.args
    visuals, doc = [], None
    if rest:
        doc_to_visual, doc_id, task, split = rest
        doc = task_dict[task][split][doc_id]
        visuals = (doc_to_visual(doc) if doc_to_visual else None) or []
    content = [{"type": "video" if is_video(visual) else "image", "url": visual} for visual in visuals]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    if isinstance(second, dict):
        return messages, None, second
    return messages, second if isinstance(second, str) else str(second(doc)), {}


def is_video(visual: Any) -> bool:
    """Whether something that a task shows is a video: a path that doesn't end as a picture's does."""
    return isinstance(visual, (str, os.PathLike)) and not str(visual).lower().endswith(IMAGE_FILES)


def make_batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Batches of equal options: questions about the same pictures together, the longest first."""
    groups: dict[str, dict[tuple, list[Job]]] = {}
    for job in jobs:
        about = tuple(visual.key for visual in job.row.visuals)
        groups.setdefault(json.dumps(job.options, sort_keys=True), {}).setdefault(about, []).append(job)
    for same_options in groups.values():
        for together in same_options.values():
            together.sort(key=lambda job: -len(job.row.ids))
        ordered = sorted(same_options.values(), key=lambda together: -len(together[0].row.ids))
        flat = [job for together in ordered for job in together]
        for start in range(0, len(flat), size):
            yield flat[start : start + size]


def generation_options(asked: dict) -> tuple[list[str], dict]:
    """A task's `generation_kwargs` as stop strings and what `generate` takes; greedy unless sampling is asked for."""
    asked = dict(asked)
    stops = asked.pop("until", None) or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    known = GenerationConfig()
    # Tasks carry options of other models along.
    options = {name: value for name, value in asked.items() if hasattr(known, name)}
    options.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    temperature = options.get("temperature")
    samples = options.get("do_sample", bool(temperature)) and temperature != 0
    if samples:
        return stops, options | {"do_sample": True}
    return stops, options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def cut(text: str, stops: list[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def own_device() -> str:
    """This process's GPU if there is one."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def identify(source: str) -> str:
    """Tells checkpoints apart: names, sizes and times of a directory's files, or a repository's name."""
    folder = Path(source)
    if not folder.is_dir():
        return str(source)
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
