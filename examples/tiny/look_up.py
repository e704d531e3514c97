"""
How a word finds what it names. Left to yes and no at the end of a question, it doesn't: 3000 steps left "Is there a
dog?" a guess. So a name's vectors begin as what tells the patches that show it from others; many names are asked about
at once, each answered where it stands; and on these lists a loss says what a name has to attend to in the first
pre-fusion layer: the patches that show it, or the vision token if nothing does.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from picture_questions import OVERLAPPING, PLURALS, pick_absent, say_absent
from picture_scenes import CENTRE, Library, PictureScene, Thing, colour_of, draw_picture, sample_things
from pretrain_tower import GRID, PATCH_CENTRES, to_pixels
from torch import nn
from transformers import ProcessorMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llava_mini import LlavaMiniForConditionalGeneration


NUM_VISION = GRID * GRID + 1  # patches and the vision token
LISTED = 6  # names in a list
HEADS = 2  # of the first layer that look things up; the others stay what they were
QUESTIONS = {
    "listed names": "Which do you see,",
    "missing name": "What is missing,",
    "listed sides": "On which side is",
    "listed colours": "Which colour is",
}
KIND_QUESTIONS = {"listed kinds": "Which do you see,", "listed counts": "How many are there,"}
NOTHING = np.arange(NUM_VISION) == GRID * GRID  # what a word of nothing that is there attends to: the vision token


@dataclass(frozen=True)
class NameList:
    """
    A question about many names with its answer, where it has one; by name the answer and what it has to attend to
    `(37,)`.
    """

    type: str
    question: str
    answer: str
    answers: dict[str, str]
    targets: dict[str, np.ndarray]


def covered_patches(thing: Thing) -> np.ndarray:
    """Which patches `(36,)` show the thing; at least the one that is nearest to its centre."""
    offset = np.abs(PATCH_CENTRES - (thing.x, thing.y))
    covered = (offset < 0.42 * thing.size + 2).all(1)
    covered[offset.sum(1).argmin()] = True
    return covered


def list_names(scene: PictureScene, library: Library, rng: random.Random) -> NameList:
    """
    Whether each of up to `LISTED` names is there, on which side, or in which colour; "no" for what is not. Some ask for
    the names that are there, or the one that is not, which are said again: so an answer learns to take words from the
    question.
    """
    kind = rng.choice(list(QUESTIONS))
    answers, targets = {}, {}
    for thing in scene.things:
        answers[thing.name] = "yes"
        targets[thing.name] = np.append(covered_patches(thing), False)
        if kind == "listed sides":
            answers[thing.name] = "right" if thing.x > CENTRE else "left"
        elif kind == "listed colours":
            answers[thing.name] = colour_of(thing, library) or "yes"
    length = len(answers) + 1 if kind == "missing name" else min(LISTED, len(library.names))
    while len(answers) < length:
        answers.setdefault(pick_absent(scene, library, rng), "no")
    names = rng.sample(list(answers), len(answers))
    there = [name for name in names if name in targets]
    missing = [say_absent(name) for name in names if name not in targets]
    answer = {"listed names": " and ".join(there), "missing name": missing[0]}.get(kind, "")
    return NameList(
        kind,
        f"{QUESTIONS[kind]} {', '.join(names)}",
        answer,
        {name: answers[name] for name in names},
        {name: targets.get(name, NOTHING) for name in names},
    )


def list_kinds(scene: PictureScene, library: Library, rng: random.Random) -> NameList:
    """As `list_names`, of categories: whether each is there, or how many of it."""
    own = defaultdict(list)
    for thing in scene.things:
        own[library.category[thing.name]].append(covered_patches(thing))
    own.pop("", None)
    absent = [c for c in PLURALS if c not in own and not OVERLAPPING.get(c, set()) & own.keys()]
    listed = [*own, *rng.sample(absent, min(LISTED - len(own), len(absent)))]
    rng.shuffle(listed)
    kind = rng.choice(list(KIND_QUESTIONS))
    answers, targets = {}, {}
    for category in listed:
        shown = own.get(category, [])
        word = PLURALS[category] if kind == "listed counts" else category
        answers[word] = str(len(shown)) if kind == "listed counts" else "yes" if shown else "no"
        targets[word] = np.append(np.any(shown, axis=0), False) if shown else NOTHING
    return NameList(kind, f"{KIND_QUESTIONS[kind]} {', '.join(answers)}", "", answers, targets)


def see_patches(
    model: LlavaMiniForConditionalGeneration, library: Library, num_pictures: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected patches that show something, `(n, D)` of length `D ** 0.5` each, and which name it is `(n,)`."""
    patches, names = [], []
    for i in range(num_pictures):
        rng = random.Random(f"dictionary {i}")
        scene = sample_things(rng, library, rng.choice((1, 1, 2)))
        pixels = to_pixels(np.array(draw_picture(scene, library))[None, None])
        with torch.no_grad():
            seen = model.model.multi_modal_projector(model.model.extract_features(pixels))[0, 0]
        for thing in scene.things:
            covered = torch.from_numpy(covered_patches(thing))
            patches.append(nn.functional.normalize(seen[covered], dim=-1) * seen.shape[-1] ** 0.5)
            names += [library.names.index(thing.name)] * len(patches[-1])
    return torch.cat(patches), torch.tensor(names)


def write_dictionary(
    model: LlavaMiniForConditionalGeneration, processor: ProcessorMixin, library: Library, num_pictures: int = 4000
) -> float:
    """
    Gives the tokens of the names vectors that tell apart what the projected patches show: a linear classifier's
    weights, as large as other tokens' vectors. Returns its accuracy on its own patches.
    """
    patches, shown = see_patches(model, library, num_pictures)
    weights = torch.zeros(len(library.names), patches.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=0.01, weight_decay=0.01)
    rng = torch.Generator().manual_seed(0)
    for _ in range(400):
        batch = torch.randint(len(patches), (2048,), generator=rng)
        loss = nn.functional.cross_entropy(patches[batch] @ weights.mT, shown[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        centred = weights - weights.mean(0)
        single, tokens = find_words(processor, library)
        head, table = model.lm_head.weight, model.get_input_embeddings().weight
        for rows, directions in ((head, centred / model.model.language_model.norm.weight), (table, centred)):
            size = rows.square().mean().sqrt() / directions.square().mean().sqrt()
            rows[tokens] = size * directions[single]
        return ((patches @ weights.mT).argmax(1) == shown).float().mean().item()


def find_words(processor: ProcessorMixin, library: Library) -> tuple[torch.Tensor, torch.Tensor]:
    """Which names `(names,)` are one token, as all but very few are, and these tokens."""
    ids = [processor.tokenizer(f" {name}", add_special_tokens=False).input_ids for name in library.names]
    single = torch.tensor([len(tokens) == 1 for tokens in ids])
    return single, torch.tensor([tokens[0] for tokens in ids])[single]


def enlarge_words(model: LlavaMiniForConditionalGeneration, processor: ProcessorMixin, library: Library, size: float):
    """
    Makes the names' embeddings as long as `size * D ** 0.5`. The first pre-fusion layer normalizes them, so it finds
    what it found; but what it adds is hundreds of times a trained embedding, behind which nobody can tell which word it
    was and say it again.
    """
    table = model.get_input_embeddings().weight
    _, tokens = find_words(processor, library)
    with torch.no_grad():
        table[tokens] = nn.functional.normalize(table[tokens], dim=1) * table.shape[1] ** 0.5 * size


class FirstLook:
    """
    While it is open, keeps what the text attends to in the first pre-fusion layer.

    Args:
        prefusion: the model's, in training on pictures of one crop and all patches.
    """

    def __init__(self, prefusion: nn.Module):
        self.first = prefusion.layers[0].self_attn
        self.attend = ALL_ATTENTION_FUNCTIONS[prefusion.config._attn_implementation]
        self.queries = self.keys = None
        self.scaling = 1.0
        self.handle = prefusion.register_forward_pre_hook(self._listen, with_kwargs=True)

    def __enter__(self) -> "FirstLook":
        return self

    def __exit__(self, *error):
        self.handle.remove()

    def _listen(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {"attention_function": self._keep_attention}

    def _keep_attention(self, attention: nn.Module, queries: torch.Tensor, keys: torch.Tensor, *args, **kwargs):
        if attention is self.first:
            self.queries, self.keys, self.scaling = queries, keys, kwargs["scaling"]
        return self.attend(attention, queries, keys, *args, **kwargs)

    def attention_loss(self, rows: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        Minus the logarithm of the share that each name gives to its targets, as much for what is there as for what is
        not.

        Args:
            rows, positions (`torch.Tensor` of shape `(N,)`): the names, positions among the text that reads.
            targets (`torch.Tensor` of shape `(N, 37)`).
        """
        queries, keys = self.queries[rows, :HEADS, positions], self.keys[rows, :HEADS]
        scores = torch.einsum("nhd,nhkd->nhk", queries, keys) * self.scaling
        is_later = torch.arange(keys.shape[2]) > NUM_VISION + positions[:, None]
        shares = scores.masked_fill(is_later[:, None], -torch.inf).log_softmax(-1)[..., :NUM_VISION]
        found = shares.masked_fill(~targets[:, None], -torch.inf).logsumexp(-1).mean(1)
        is_absent = targets[:, -1]
        return -(found[is_absent].mean() + found[~is_absent].mean()) / 2
