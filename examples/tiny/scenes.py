"""Pictures and clips for the small model: drawn shapes, printed numbers, handwritten digits. Deterministic by seed."""

import random
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits


IMAGE_SIZE = 84
# Drawn larger and reduced: smooth edges, as in pictures that users bring.
SUPERSAMPLING = 2
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 180),
    "orange": (245, 135, 30),
}
BACKGROUNDS = {"white": (248, 248, 248), "gray": (128, 128, 128), "black": (14, 14, 14)}
KINDS = ("circle", "square", "triangle", "star")
RADII = {"small": (7.0, 9.0), "large": (13.0, 16.0)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Never drawn for training, neither for the tower nor for the rest: what "unseen pair" asks about.
UNSEEN_PAIRS = (("purple", "star"), ("green", "circle"), ("orange", "triangle"))
NUM_TRAIN_DIGITS = 1397
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
CLIP_FPS = 8


@dataclass
class Shape:
    """A drawn shape; position and radius in pixels of the finished picture."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0


@dataclass
class Scene:
    """Everything a picture shows."""

    background: str
    shapes: list[Shape] = field(default_factory=list)
    number: str | None = None
    number_colour: str | None = None
    number_box: tuple[float, float, float] = (0.0, 0.0, 0.0)  # left, top, font size
    font: str = FONTS[0]
    digit: int | None = None  # index into scikit-learn's handwritten digits
    digit_box: tuple[float, float, float] = (0.0, 0.0, 0.0)  # left, top, side
    noise_seed: int = 0


class Timed:
    """What clips have in common: `seconds`, and `at(u)`, the scene at time `u` in 0..1."""

    @property
    def num_frames(self) -> int:
        """Frames of the file."""
        return self.seconds * CLIP_FPS

    def sampled_frames(self) -> list:
        """What the video processor keeps of the file: a frame a second, the middle of each segment."""
        edges = np.round((self.num_frames - 1) / self.seconds * np.arange(self.seconds + 1)).astype(int)
        return [self.at(i / (self.num_frames - 1)) for i in (edges[:-1] + edges[1:]) // 2]

    def all_frames(self) -> list:
        """Every frame of the file."""
        return [self.at(i / (self.num_frames - 1)) for i in range(self.num_frames)]


@dataclass
class Clip(Timed):
    """A video: what happens to one shape between `u = 0` and `u = 1`."""

    scene: Scene
    event: str  # move | kind | colour | grow | shrink
    seconds: int
    start: tuple[float, float] = (0.0, 0.0)
    direction: str | None = None
    distance: float = 0.0
    later: str | None = None  # kind or colour after the change
    change_at: float = 0.5

    def at(self, u: float) -> Scene:
        """The picture at time `u` in 0..1."""
        shape = self.scene.shapes[0]
        if self.event == "move":
            dx, dy = DIRECTIONS[self.direction]
            shape = replace(shape, x=self.start[0] + dx * u * self.distance, y=self.start[1] + dy * u * self.distance)
        elif self.event in ("kind", "colour") and u > self.change_at:
            shape = replace(shape, **{self.event: self.later})
        elif self.event in ("grow", "shrink"):
            share = u if self.event == "grow" else 1 - u
            shape = replace(shape, radius=6 + 12 * share)
        return replace(self.scene, shapes=[shape])


@cache
def handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(1797, 8, 8)` in 0..1 and classes `(1797,)` of scikit-learn's digits, in its order."""
    digits = load_digits()
    return digits.images / 16.0, digits.target


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings the same fonts to every machine.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def number_layout(scene: Scene) -> list[tuple[str, float, float, float, float]]:
    """Each printed character with its box: character, left, top, right, bottom in picture pixels."""
    left, top, size = scene.number_box
    font = _font(scene.font, round(size * SUPERSAMPLING))
    boxes = []
    for i, character in enumerate(scene.number):
        start = left + font.getlength(scene.number[:i]) / SUPERSAMPLING
        box = [value / SUPERSAMPLING for value in font.getbbox(character)]
        boxes.append((character, start + box[0], top + box[1], start + box[2], top + box[3]))
    return boxes


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 84x84 pixels."""
    rng = random.Random(scene.noise_seed)

    def shade(colour: tuple[int, int, int]) -> tuple[int, ...]:
        return tuple(min(max(channel + rng.randint(-10, 10), 0), 255) for channel in colour)

    side = IMAGE_SIZE * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), shade(BACKGROUNDS[scene.background]))
    canvas = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        _draw_shape(canvas, shape, shade(COLOURS[shape.colour]))
    if scene.number is not None:
        left, top, size = (value * SUPERSAMPLING for value in scene.number_box)
        colour = shade(COLOURS[scene.number_colour])
        canvas.text((left, top), scene.number, fill=colour, font=_font(scene.font, round(size)))
    if scene.digit is not None:
        left, top, size = (round(value * SUPERSAMPLING) for value in scene.digit_box)
        ink = Image.fromarray((handwritten_digits()[0][scene.digit] * 255).astype(np.uint8))
        # Black ink, or white on a dark background.
        colour = (250, 250, 250) if scene.background == "black" else (10, 10, 10)
        picture.paste(colour, (left, top), ink.resize((size, size), Image.Resampling.BICUBIC))
    return picture.reduce(SUPERSAMPLING)


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape, colour: tuple[int, ...]):
    x, y, radius = (value * SUPERSAMPLING for value in (shape.x, shape.y, shape.radius))
    if shape.kind == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    corners, depth = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape.kind]
    # A square's first corner points to the upper right, the others' straight up.
    first = shape.rotation - (np.pi / 4 if shape.kind == "square" else np.pi / 2)
    angles = first + np.arange(corners) * 2 * np.pi / corners
    lengths = radius * 1.15 * np.where(np.arange(corners) % 2, depth, 1.0)
    canvas.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(lengths, angles)], fill=colour)


def _pick_pair(rng: random.Random, pairs: str) -> tuple[str, str]:
    if pairs == "unseen":
        return rng.choice(UNSEEN_PAIRS)
    while True:
        pair = rng.choice(list(COLOURS)), rng.choice(KINDS)
        if pair not in UNSEEN_PAIRS:
            return pair


def sample_shapes(rng: random.Random, count: int, pairs: str = "seen") -> Scene:
    """`count` shapes that do not touch, of any colour, kind and size."""
    while True:
        shapes: list[Shape] = []
        for _ in range(count):
            colour, kind = _pick_pair(rng, pairs)
            size = rng.choice(list(RADII))
            radius = rng.uniform(*RADII[size])
            margin = radius * 1.15 + 1
            x, y = (rng.uniform(margin, IMAGE_SIZE - margin) for _ in "xy")
            shapes.append(Shape(kind, colour, size, x, y, radius, rng.uniform(-0.2, 0.2)))
        apart = (
            (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (1.15 * (a.radius + b.radius) + 3) ** 2
            for i, a in enumerate(shapes)
            for b in shapes[:i]
        )
        if all(apart):
            return Scene(rng.choice(list(BACKGROUNDS)), shapes, noise_seed=rng.getrandbits(32))


def sample_number(rng: random.Random) -> Scene:
    """A printed number of two digits."""
    scene = Scene(
        rng.choice(list(BACKGROUNDS)),
        number=str(rng.randint(10, 99)),
        number_colour=rng.choice(list(COLOURS)),
        font=rng.choice(FONTS),
        noise_seed=rng.getrandbits(32),
    )
    size = rng.uniform(38, 48)
    boxes = number_layout(replace(scene, number_box=(0.0, 0.0, size)))
    left, top, right, bottom = (f(b[i] for b in boxes) for i, f in zip(range(1, 5), (min, min, max, max)))
    x = rng.uniform(2, max(IMAGE_SIZE - 2 - (right - left), 2.01)) - left
    y = rng.uniform(2, max(IMAGE_SIZE - 2 - (bottom - top), 2.01)) - top
    return replace(scene, number_box=(x, y, size))


def sample_digit(rng: random.Random, split: str = "train") -> Scene:
    """A handwritten digit; those after the first 1397 are held out for tests."""
    total = len(handwritten_digits()[1])
    index = rng.randrange(NUM_TRAIN_DIGITS) if split == "train" else rng.randrange(NUM_TRAIN_DIGITS, total)
    side = rng.uniform(50, 72)
    left, top = (rng.uniform(4, IMAGE_SIZE - 4 - side) for _ in "xy")
    background = rng.choice(["white", "black"])
    return Scene(background, digit=index, digit_box=(left, top, side), noise_seed=rng.getrandbits(32))


def sample_clip(rng: random.Random) -> Clip:
    """A shape that moves, turns into another, changes its colour, grows or shrinks."""
    scene = sample_shapes(rng, 1)
    shape = scene.shapes[0]
    event = rng.choice(["move", "move", "kind", "colour", rng.choice(["grow", "shrink"])])
    clip = Clip(scene, event, seconds=rng.randint(3, 5), change_at=rng.uniform(0.4, 0.6))
    if event == "move":
        clip.direction, clip.distance = rng.choice(list(DIRECTIONS)), rng.uniform(32, 44)
        margin = shape.radius * 1.15 + 1
        start = []
        for step in DIRECTIONS[clip.direction]:
            low, high = margin + max(-step, 0) * clip.distance, IMAGE_SIZE - margin - max(step, 0) * clip.distance
            start.append(rng.uniform(min(low, high), high) if low <= high else (low if step < 0 else high))
        clip.start = tuple(start)
    elif event in ("kind", "colour"):
        values = KINDS if event == "kind" else COLOURS
        options = [v for v in values if v != getattr(shape, event)]
        pair = (lambda v: (shape.colour, v)) if event == "kind" else (lambda v: (v, shape.kind))
        clip.later = rng.choice([v for v in options if pair(v) not in UNSEEN_PAIRS])
    else:
        shape.x, shape.y = (rng.uniform(22, IMAGE_SIZE - 22) for _ in "xy")
    return clip
