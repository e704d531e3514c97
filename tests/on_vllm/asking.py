"""Questions about pictures and videos, what transformers answers, and engines that are asked the same."""

import base64
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import av
import numpy as np
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText

from llava_mini import LlavaMiniProcessor


NEW_TOKENS = 12
# The small model's positions; the golden checkpoints' tokenizers write a word in several tokens.
MAX_LENGTHS = {"checkpoint": 512}
DEFAULT_MAX_LENGTH = 2048
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
QUESTIONS = (
    "What colour is the circle?",
    "Which shape is blue?",
    "How many shapes are there?",
    "Is there a red circle?",
    "Is the square small or large?",
    "Is the circle on the left or on the right?",
    "What colour is the background?",
    "Which digit is this?",
)


def picture(seed: int) -> Image.Image:
    """Shapes and noise, of another size and shape for each seed."""
    random = np.random.default_rng(seed)
    height, width = random.integers(40, 120, 2)
    image = Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, width * 0.9, height), fill=COLOURS[seed % 6])
    canvas.ellipse((5, 5, width / 2, height / 2), fill=COLOURS[(seed + 1 + seed // 6) % 6])
    return image


@cache
def image_url(seed: int) -> str:
    file = BytesIO()
    picture(seed).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@cache
def video_url(seed: int) -> str:
    """A video of two to five seconds, ten frames each."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20 + 10 * (seed % 4)):
            frame = np.full((48, 64, 3), (40 * seed + 5 * i) % 255, dtype=np.uint8)
            frame[10:30, (seed * 7 + i) % 40 :][:, :16] = (255, 5 * i % 255, 40 * seed % 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode()


def user(*parts) -> dict:
    """A message of words, ("image", seed) and ("video", seed)."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            kind, seed = part
            url = image_url(seed) if kind == "image" else video_url(seed)
            content.append({"type": f"{kind}_url", f"{kind}_url": {"url": url}})
    return {"role": "user", "content": content}


def make_chats() -> list[list[dict]]:
    """At least 40 chats, in OpenAI's words."""
    long = " ".join(f"number {i}" for i in range(105))
    chats = [[user(("image", seed), QUESTIONS[0])] for seed in range(10)]  # same text, other pictures
    chats += [[user(("image", 0), question)] for question in QUESTIONS[1:]]  # same picture, other text
    chats += [[user(("image", seed), "and", ("image", seed + 1), QUESTIONS[seed % 8])] for seed in range(5)]
    chats += [[user(("image", 3), ("image", 2), ("image", 1), QUESTIONS[1])]]
    chats += [[user(("image", seed), long, QUESTIONS[0])] for seed in (0, 1)]
    chats += [[user(("video", seed), QUESTIONS[seed % 8])] for seed in range(5)]
    chats += [[user(("video", 1), "then", ("video", 2), QUESTIONS[2])]]
    chats += [[user(("image", seed), ("video", seed), QUESTIONS[0])] for seed in (0, 1)]
    chats += [[user("First", ("video", 0), "last", ("image", seed), QUESTIONS[0])] for seed in (4, 5)]
    chats += [[user(question)] for question in QUESTIONS[:3]]
    said = {"role": "assistant", "content": "red"}
    chats += [[user(("image", seed), QUESTIONS[0]), said, user(QUESTIONS[2])] for seed in (0, 1)]
    chats += [[user(("image", 2), "Typed: <image> and <video>")]]
    assert len(chats) >= 40
    return chats


class Reference:
    """transformers' answers."""

    def __init__(self, checkpoint):
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
        self.processor = LlavaMiniProcessor.from_pretrained(checkpoint)

    def ask(
        self, chat: list[dict], new_tokens: int = NEW_TOKENS, model_options: dict | None = None, **options
    ) -> tuple[list[int], list[int]]:
        """Prompt ids and greedy ids."""
        chat = [message | {"content": [as_ours(part) for part in message["content"]]} for message in as_lists(chat)]
        inputs = self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        ids = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **(model_options or {}))
        length = inputs["input_ids"].shape[1]
        return ids[0, :length].tolist(), ids[0, length:].tolist()


def as_lists(chat: list[dict]) -> list[dict]:
    words = [message for message in chat if isinstance(message["content"], str)]
    return [m | {"content": [{"type": "text", "text": m["content"]}]} if m in words else m for m in chat]


def as_ours(part: dict) -> dict:
    kind = part["type"].removesuffix("_url")
    return part if kind == "text" else {"type": kind, "url": part[f"{kind}_url"]["url"]}


@cache
def reference(checkpoint) -> Reference:
    return Reference(checkpoint)


@cache
def expected(checkpoint) -> list[tuple[list[int], list[int]]]:
    """What transformers answers to all chats, a long one among them."""
    answers = [reference(checkpoint).ask(chat) for chat in make_chats()]
    assert max(len(prompt) for prompt, _ in answers) >= 300
    return answers


@contextmanager
def engine(checkpoint, **settings):
    """A vLLM engine in float32."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    length = MAX_LENGTHS.get(checkpoint.name, DEFAULT_MAX_LENGTH)
    settings = {"enforce_eager": True, "max_num_seqs": 8, "max_model_len": length, "seed": 0} | settings
    llm = LLM(str(checkpoint), **({"dtype": "float32"} | settings))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def ask(llm, chats: list[list[dict]], new_tokens: int = NEW_TOKENS) -> list:
    """vLLM's outputs, all chats at once."""
    from vllm import SamplingParams

    return llm.chat(chats, SamplingParams(temperature=0, max_tokens=new_tokens), use_tqdm=False)


def check_equal(outputs: list, wanted: list[tuple[list[int], list[int]]]) -> None:
    differing = []
    for i, (output, (prompt, ids)) in enumerate(zip(outputs, wanted, strict=True)):
        assert output.prompt_token_ids == prompt, f"prompt {i}"
        if list(output.outputs[0].token_ids) != ids:
            differing.append((i, ids, list(output.outputs[0].token_ids)))
    assert not differing
