"""Batches for the small model: several questions about each picture, whose vision side runs once."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import look_up
import numpy as np
import picture_questions
import picture_scenes
import questions
import scenes
import torch
from look_up import NameList
from picture_scenes import Library, PictureClip, PictureScene
from PIL import Image
from pretrain_tower import to_pixels
from questions import Question
from transformers import ProcessorMixin
from wordings import vary


IGNORED = -100
CAPTIONS = ("caption", "thing caption")


@dataclass
class Mix:
    """
    What a phase of training shows.

    Args:
        scenes: weights of "1", "2", "3" (shapes), "number", "digit", "things 1", "things 2", "things 3", "garment".
        types: weights of question types, 1 where not named; "absent shape" is asked only where named.
        video: share of batches with videos.
        thing_clips: share of these videos' clips that show things.
        captions: share of batches with captions alone, which are too long to be padded to beside short answers.
        lists: share of batches that ask about many names at once, each answered where it stands.
        kinds: share of these lists that are of categories.
        say_again: whether the comma behind a listed name says it again, so that any word can be taken from a question.
        blind, blind_video: share of batches in which the text does not see the patches, so that the answer has to
            come through the vision token.
        varied: whether questions are written in all the ways of `wordings.py`.
    """

    scenes: dict[str, float]
    types: dict[str, float] = field(default_factory=dict)
    video: float = 0.0
    captions: float = 0.0
    lists: float = 0.0
    kinds: float = 0.0
    say_again: bool = False
    blind: float = 0.25
    blind_video: float = 0.6
    pictures: int = 32
    questions: int = 4
    clips: int = 12
    clip_questions: int = 3
    thing_clips: float = 0.0
    varied: bool = False


def choose_questions(
    candidates: list[Question], weights: dict[str, float], count: int, rng: random.Random
) -> list[Question]:
    """
    `count` questions: a type by weight, then any question of it; repeated only when there are too few.

    Raises:
        ValueError: no type that can be asked has a weight.
    """
    askable = sorted({question.type for question in candidates})
    candidates = [question for question in candidates if weights.get(question.type, 1.0) > 0]
    if not candidates:
        raise ValueError(f"A picture can be asked about {askable}, but the mix gives no weight to any of them.")
    chosen: list[Question] = []
    while len(chosen) < count:
        left = [question for question in candidates if question not in chosen] or candidates
        types = sorted({question.type for question in left})
        kind = rng.choices(types, [weights.get(name, 1.0) for name in types])[0]
        chosen.append(rng.choice([question for question in left if question.type == kind]))
    return chosen


def sample_scene(mix: Mix, rng: random.Random, library: Library | None = None) -> scenes.Scene | PictureScene:
    """A picture of a sort by weight."""
    sort = rng.choices(list(mix.scenes), list(mix.scenes.values()))[0]
    if sort == "garment":
        return picture_scenes.sample_garment(rng, library)
    if sort.startswith("things"):
        return picture_scenes.sample_things(rng, library, int(sort.split()[1]))
    if sort == "number":
        return scenes.sample_number(rng)
    return scenes.sample_digit(rng) if sort == "digit" else scenes.sample_shapes(rng, int(sort))


def draw(scene: scenes.Scene | PictureScene, library: Library | None) -> Image.Image:
    """Either sort of picture."""
    return picture_scenes.draw_picture(scene, library) if isinstance(scene, PictureScene) else scenes.draw(scene)


class PromptEncoder:
    """Ids and labels of one question with one picture or clip, as the processor's chat template makes them."""

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor
        self.encoded: dict[tuple[str, str, str, int], tuple[list[int], list[int]]] = {}

    def encode(self, kind: str, text: str, answer: str, num_placeholders: int) -> tuple[list[int], list[int]]:
        """Ids and labels, kept: the same questions come again and again."""
        key = (kind, text, answer, num_placeholders)
        if key not in self.encoded:
            self.encoded[key] = self._encode(*key)
        return self.encoded[key]

    def encode_list(
        self, asked: NameList, num_placeholders: int, say_again: bool = False
    ) -> tuple[list[int], list[int], dict]:
        """
        Ids and labels of the question, and by the position of the label of what follows a name, where the model says
        it, the answer to it and what the name has to attend to. With `say_again` the comma behind says the name again.
        """
        ids, labels = self.encode("image", asked.question, asked.answer, num_placeholders)
        if not asked.answer:
            labels = [IGNORED] * len(ids)
        listed, end, last = {}, 0, list(asked.answers)[-1]
        for name, answer in asked.answers.items():
            of_name, of_answer = (
                self.processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in (name, answer)
            )
            starts = range(end, len(ids) - len(of_name))
            end = next(start for start in starts if ids[start : start + len(of_name)] == of_name) + len(of_name)
            listed[end] = (of_answer[0], asked.targets[name])
            if say_again and name != last:  # behind which there is no comma
                listed[end + 1] = (of_name[0], np.zeros(look_up.NUM_VISION, dtype=bool))
        return ids, labels, listed

    def _encode(self, kind: str, text: str, answer: str, num_placeholders: int) -> tuple[list[int], list[int]]:
        chat = [
            {"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]},
            {"role": "assistant", "content": answer},
        ]
        prompt = self.processor.apply_chat_template(chat[:1], add_generation_prompt=True)
        whole = self.processor.apply_chat_template(chat)
        token = getattr(self.processor, f"{kind}_token")
        tokenizer = self.processor.tokenizer
        prompt, whole = (
            tokenizer(text.replace(token, token * num_placeholders), add_special_tokens=False)["input_ids"]
            for text in (prompt, whole)
        )
        return whole, [IGNORED] * len(prompt) + whole[len(prompt) :]


class PackedBatches(torch.utils.data.IterableDataset):
    """
    Endless new pictures, deterministic by `name`: each item is a whole batch with `input_ids`, `attention_mask`,
    `labels` `(pictures * questions, length)`, `text_fusion_mask`, pixels of the pictures alone, and each row's type.

    Args:
        num_image_tokens (`int`, *optional*): placeholders of a picture and a frame, where the processor doesn't know.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        mix: Mix,
        name: str,
        library: Library | None = None,
        num_image_tokens: int | None = None,
    ):
        self.encoder = PromptEncoder(processor)
        self.mix, self.name, self.library = mix, name, library
        self.num_image_tokens = num_image_tokens or processor.num_image_tokens
        self.pad_id = processor.tokenizer.pad_token_id

    def __iter__(self) -> Iterator[dict]:
        step = 0
        while True:
            rng = random.Random(f"{self.name} {step}")
            sort = rng.random()
            if sort < self.mix.video:
                yield self.video_batch(rng)
            elif sort < self.mix.video + self.mix.lists:
                yield self.list_batch(rng)
            else:
                yield self.image_batch(rng, is_caption=sort < self.mix.video + self.mix.lists + self.mix.captions)
            step += 1

    def about(self, scene: scenes.Scene | PictureScene, rng: random.Random) -> list[Question]:
        """All that this mix asks about a picture."""
        if isinstance(scene, PictureScene):
            return picture_questions.about_picture(scene, self.library, rng)
        asked = questions.about_scene(scene, rng)
        if scene.shapes and self.mix.types.get("absent shape"):
            asked.append(questions.about_what_is_absent(scene, rng))
        return asked

    def choose(self, candidates: list[Question], count: int, rng: random.Random) -> list[Question]:
        """By the mix's weights, as somebody might type them."""
        chosen = choose_questions(candidates, self.mix.types, count, rng)
        return [replace(q, text=vary(q.text, rng)) for q in chosen] if self.mix.varied else chosen

    def image_batch(self, rng: random.Random, is_caption: bool) -> dict:
        """Pictures with `mix.questions` questions, or a caption, each."""
        sampled = [
            sample_scene(self.mix, rng, self.library) for _ in range(self.mix.pictures * (2 if is_caption else 1))
        ]
        if is_caption:  # garments have none
            sampled = [scene for scene in sampled if getattr(scene, "garment", None) is None]
        rows = []
        for scene in sampled:
            candidates = [q for q in self.about(scene, rng) if (q.type in CAPTIONS) == is_caption]
            chosen = self.choose(candidates, 1 if is_caption else self.mix.questions, rng)
            rows += [(question, self.num_image_tokens) for question in chosen]
        batch = self.collate("image", rows, rng.random() < self.mix.blind)
        return batch | {"pixel_values": self.draw(sampled)}

    def list_batch(self, rng: random.Random) -> dict:
        """Pictures of things with a list of names each."""
        counts = [int(sort.split()[1]) for sort in self.mix.scenes if sort.startswith("things")]
        sampled = [
            picture_scenes.sample_things(rng, self.library, rng.choice(counts)) for _ in range(2 * self.mix.pictures)
        ]
        kinds = self.mix.kinds
        lists = [
            (look_up.list_kinds if kinds and rng.random() < kinds else look_up.list_names)(scene, self.library, rng)
            for scene in sampled
        ]
        encoded = [self.encoder.encode_list(asked, self.num_image_tokens, self.mix.say_again) for asked in lists]
        batch = self.pad([(ids, labels) for ids, labels, _ in encoded], [asked.type for asked in lists])
        batch["text_fusion_mask"] = batch["labels"] == IGNORED
        targets = torch.zeros(*batch["labels"].shape, look_up.NUM_VISION, dtype=torch.bool)
        for row, (_, _, listed) in enumerate(encoded):
            for position, (label, target) in listed.items():
                batch["labels"][row, position] = label
                targets[row, position - 1] = torch.from_numpy(target)
        return batch | {"attention_targets": targets, "pixel_values": self.draw(sampled)}

    def draw(self, sampled: list) -> torch.Tensor:
        """Pixels `(pictures, 1, 3, height, width)`."""
        return to_pixels(np.stack([np.asarray(draw(scene, self.library)) for scene in sampled]))[:, None]

    def sample_clip(self, rng: random.Random) -> tuple[scenes.Clip | PictureClip, list[Question]]:
        """A clip of a shape or of a thing, with all that can be asked about it."""
        if self.mix.thing_clips and rng.random() < self.mix.thing_clips:
            clip = picture_scenes.sample_picture_clip(rng, self.library)
            return clip, picture_questions.about_picture_clip(clip, rng)
        clip = scenes.sample_clip(rng)
        return clip, questions.about_clip(clip, rng)

    def video_batch(self, rng: random.Random) -> dict:
        """Clips with `mix.clip_questions` questions each."""
        sampled = [self.sample_clip(rng) for _ in range(self.mix.clips)]
        rows = [
            (question, self.num_image_tokens * clip.seconds)
            for clip, candidates in sampled
            for question in self.choose(candidates, self.mix.clip_questions, rng)
        ]
        batch = self.collate("video", rows, rng.random() < self.mix.blind_video)
        frames = [[np.asarray(draw(scene, self.library)) for scene in clip.sampled_frames()] for clip, _ in sampled]
        pixels = [to_pixels(np.stack(video))[:, None] for video in frames]
        batch["pixel_values_videos"] = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True)
        batch["video_num_frames"] = torch.tensor([len(video) for video in frames])
        return batch

    def collate(self, kind: str, rows: list[tuple[Question, int]], is_blind: bool) -> dict:
        """Right-padded ids and labels."""
        encoded = [self.encoder.encode(kind, q.text, q.answer, placeholders) for q, placeholders in rows]
        batch = self.pad(encoded, [question.type for question, _ in rows])
        fused = batch["labels"] == IGNORED
        return batch | {"text_fusion_mask": torch.zeros_like(fused) if is_blind else fused}

    def pad(self, encoded: list[tuple[list[int], list[int]]], types: list[str]) -> dict:
        """Right-padded."""
        longest = max(len(ids) for ids, _ in encoded)
        input_ids = torch.tensor([ids + [self.pad_id] * (longest - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded])
        lengths = torch.tensor([len(ids) for ids, _ in encoded])
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "types": types,
        }
