"""Scenes and clips of cut-outs on plain, gradient and photographic backgrounds, and garments. Deterministic by seed."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from colours import name_colour
from picture_names import load_names
from pictures import GARMENTS, SIDE, SOURCES, load_garments, load_style
from PIL import Image, ImageFilter
from scenes import DIRECTIONS, IMAGE_SIZE, Timed
from sklearn.datasets import load_sample_images


CENTRE = IMAGE_SIZE / 2
# Longest side of a cut-out in pixels of the picture, by how many there are.
SIZES = {1: (36.0, 82.0), 2: (27.0, 40.0), 3: (23.0, 31.0)}
WARP = 0.06  # how far a point of a bent cut-out moves, in its sides
SAME_CATEGORY = 0.5  # how often the next thing of a picture is of the first one's category
MIP_SIDES = (SIDE, SIDE // 2, SIDE // 3)  # transform() does not average what it shrinks
BACKGROUND_SORTS = {"plain": 5, "gradient": 2, "photo": 3}
PLAIN = ((250, 250, 250), (128, 128, 128), (14, 14, 14))
GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Look:
    """How a cut-out's colours are changed: hue in turns of a circle, saturation, brightness."""

    hue: float = 0.0
    saturation: float = 1.0
    brightness: float = 1.0


@dataclass(frozen=True)
class Thing:
    """A cut-out in a picture; position and longest side in pixels, rotation in degrees."""

    name: str
    style: str
    slug: str
    x: float
    y: float
    size: float
    is_mirrored: bool = False
    angle: float = 0.0
    stretch: float = 1.0  # width by height
    look: Look = Look()
    warp: tuple[float, ...] = ()  # see `bend`


@dataclass(frozen=True)
class Garment:
    """A photograph of Fashion-MNIST: its place in the split, left, top and side in pixels, paper and ink."""

    split: str
    index: int
    left: float = 0.0
    top: float = 0.0
    side: float = float(IMAGE_SIZE)
    is_mirrored: bool = False
    dark: tuple[int, int, int] = (0, 0, 0)
    light: tuple[int, int, int] = (255, 255, 255)


@dataclass
class PictureScene:
    """Everything a picture shows."""

    background: str = "plain"
    colours: tuple[tuple[int, int, int], tuple[int, int, int]] = (PLAIN[0], PLAIN[0])
    things: list[Thing] = field(default_factory=list)
    garment: Garment | None = None
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0


@dataclass
class PictureClip(Timed):
    """A video: what happens to one thing between `u = 0` and `u = 1`."""

    scene: PictureScene
    event: str  # move | become | grow | shrink
    seconds: int
    start: tuple[float, float] = (0.0, 0.0)
    direction: str | None = None
    distance: float = 0.0
    later: Thing | None = None
    change_at: float = 0.5

    def at(self, u: float) -> PictureScene:
        """The picture at time `u` in 0..1."""
        thing = self.scene.things[0]
        if self.event == "move":
            dx, dy = DIRECTIONS[self.direction]
            thing = replace(thing, x=self.start[0] + dx * u * self.distance, y=self.start[1] + dy * u * self.distance)
        elif self.event == "become" and u > self.change_at:
            thing = self.later
        elif self.event in ("grow", "shrink"):
            share = u if self.event == "grow" else 1 - u
            thing = replace(thing, size=22 + 50 * share)
        return replace(self.scene, things=[thing])


class Library:
    """
    The cut-outs that scenes are made of.

    Args:
        cutouts: `{style: {slug: (96, 96, 4)}}`.
        names: as `picture_names.load_names()`.
        garments: by split, photographs `(n, 28, 28)` and classes `(n,)`.
    """

    def __init__(
        self,
        cutouts: dict[str, dict[str, np.ndarray]],
        names: dict[str, dict],
        garments: dict[str, tuple[np.ndarray, np.ndarray]],
    ):
        self.garments = garments
        self.cutouts = {(style, slug): c for style, own in cutouts.items() for slug, c in own.items()}
        # By name and artist, so that an artist with three styles is not drawn thrice as often.
        self.pictures: dict[str, dict[str, list[tuple[str, str]]]] = {}
        for name, entry in names.items():
            by_artist = defaultdict(list)
            for style, own in cutouts.items():
                by_artist[SOURCES[style].artist] += [(style, slug) for slug in entry["slugs"] if slug in own]
            drawn = {artist: pictures for artist, pictures in by_artist.items() if pictures}
            if drawn:
                self.pictures[name] = drawn
        self.names = list(self.pictures)
        self.category = {name: names[name]["category"] for name in self.names}
        self.members = defaultdict(list)
        for name, category in self.category.items():
            self.members[category].append(name)
        self._mips: dict[tuple[str, str], list[Image.Image]] = {}

    @classmethod
    def load(cls, cache_folder: Path, styles: Iterable[str], splits: Iterable[str] = ("train",)) -> "Library":
        """From the cache that `pictures.py` fills."""
        names = load_names()
        slugs = tuple(sorted({slug for entry in names.values() for slug in entry["slugs"]}))
        cutouts = {style: load_style(style, slugs, cache_folder) for style in styles}
        return cls(cutouts, names, {split: load_garments(split, cache_folder) for split in splits})

    def mip(self, key: tuple[str, str], size: float) -> Image.Image:
        """The cut-out, premultiplied, in the smallest stored size that is not below `size`."""
        if key not in self._mips:
            whole = Image.fromarray(self.cutouts[key]).convert("RGBa")
            self._mips[key] = [whole, *(whole.reduce(SIDE // side) for side in MIP_SIDES[1:])]
        return [mip for mip in self._mips[key] if mip.width >= size or mip.width == SIDE][-1]

    def pick(self, name: str, rng: random.Random) -> tuple[str, str]:
        """Style and slug of a picture of this name, every artist as often."""
        return rng.choice(rng.choice(list(self.pictures[name].values())))


def _colour_matrix(look: Look) -> np.ndarray:
    """Rotation around the gray axis, after saturation and brightness, `(3, 3)`."""
    angle = 2 * np.pi * look.hue
    ones = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * ones + np.sin(angle) * cross
    saturation = look.saturation * np.eye(3) + (1 - look.saturation) * np.array([GRAY] * 3)
    return look.brightness * rotation @ saturation


def bend(cutout: Image.Image, warp: tuple[float, ...]) -> Image.Image:
    """
    The cut-out as if another had drawn it: nine points, three by three, are read from `warp` (x and y of each, in
    sides of the picture) away from where they are; those on the border only outwards, so that nothing is cut off.
    """
    side, steps = cutout.width, np.linspace(0, 1, 3)
    points = np.stack(np.meshgrid(steps, steps), axis=-1)
    shift = np.array(warp).reshape(3, 3, 2)
    sources = side * (points + np.where(points == 0.5, shift, np.abs(shift) * np.sign(points - 0.5)))
    bounds = np.round(side * steps).astype(int).tolist()
    mesh = []
    for row in range(2):
        for column in range(2):
            corners = [sources[row + y, column + x] for y, x in ((0, 0), (1, 0), (1, 1), (0, 1))]
            box = (bounds[column], bounds[row], bounds[column + 1], bounds[row + 1])
            mesh.append((box, np.concatenate(corners).tolist()))
    return cutout.transform(cutout.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def draw_thing(thing: Thing, library: Library) -> np.ndarray:
    """On nothing, premultiplied, `(84, 84, 4)` of 0..255."""
    mip = library.mip((thing.style, thing.slug), thing.size)
    if thing.warp:
        mip = bend(mip, thing.warp)
    angle, scale = np.deg2rad(thing.angle), mip.width / thing.size
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.diag([(-1 if thing.is_mirrored else 1) * max(1 / thing.stretch, 1.0), max(thing.stretch, 1.0)])
    matrix = scale * stretch @ rotation
    shift = mip.width / 2 - matrix @ (thing.x, thing.y)
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    drawn = mip.transform(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )  # fmt: skip
    pixels = np.asarray(drawn, np.float32)
    if thing.look != Look():
        colours = pixels[..., :3] @ _colour_matrix(thing.look).T.astype(np.float32)
        pixels = np.concatenate([colours.clip(0, pixels[..., 3:]), pixels[..., 3:]], axis=-1)
    return pixels


def colour_of(thing: Thing, library: Library) -> str | None:
    """The word for the colour that prevails in it as it is drawn."""
    pixels = draw_thing(replace(thing, x=CENTRE, y=CENTRE, size=min(thing.size, 48.0)), library)
    alpha = pixels[..., 3:]
    whole = np.concatenate([pixels[..., :3] * 255 / np.maximum(alpha, 1), alpha], axis=-1)
    return name_colour(whole.clip(0, 255).astype(np.uint8))


@cache
def _photographs() -> list[np.ndarray]:
    """Scikit-learn's two sample photographs (CC-BY, named in its licence files)."""
    return [np.asarray(Image.fromarray(photo).reduce(2)) for photo in load_sample_images().images]


def _draw_background(scene: PictureScene, rng: np.random.Generator) -> np.ndarray:
    if scene.background == "photo":
        photo = _photographs()[rng.integers(len(_photographs()))]
        side = int(rng.integers(40, min(photo.shape[:2])))
        top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((IMAGE_SIZE, IMAGE_SIZE))
        pixels = np.asarray(crop, np.float32)[:, :: 1 - 2 * int(rng.integers(2))]
        return (pixels @ _colour_matrix(Look(hue=float(rng.uniform(-0.1, 0.1)), saturation=0.8)).T).clip(0, 255)
    first, second = (np.array(colour, np.float32) for colour in scene.colours)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] - CENTRE) / IMAGE_SIZE
    share = (0.5 + 0.7 * (np.cos(angle) * x + np.sin(angle) * y)).clip(0, 1)[..., None]
    return first + (second - first) * share.astype(np.float32)


def _draw_garment(garment: Garment, library: Library) -> np.ndarray:
    ink = Image.fromarray(library.garments[garment.split][0][garment.index])
    scale = ink.width / garment.side
    sign = -1 if garment.is_mirrored else 1
    shift = (0 if sign > 0 else ink.width) - sign * scale * garment.left
    coefficients = (sign * scale, 0, shift, 0, scale, -scale * garment.top)
    drawn = ink.transform((IMAGE_SIZE, IMAGE_SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    dark, light = (np.array(colour, np.float32) for colour in (garment.dark, garment.light))
    return dark + (light - dark) * (np.asarray(drawn, np.float32) / 255)[..., None]


def draw_picture(scene: PictureScene, library: Library) -> Image.Image:
    """The scene as an RGB picture of 84x84 pixels."""
    rng = np.random.default_rng(scene.noise_seed)
    if scene.garment is not None:
        canvas = _draw_garment(scene.garment, library)
    else:
        canvas = _draw_background(scene, rng)
    for thing in scene.things:
        pixels = draw_thing(thing, library)
        canvas = canvas * (1 - pixels[..., 3:] / 255) + pixels[..., :3]
    if scene.noise:
        canvas = canvas + rng.normal(0, scene.noise, canvas.shape)
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(scene.blur)) if scene.blur else picture


def sample_look(rng: random.Random) -> Look:
    """Half as drawn; else a little off, in any hue, or gray."""
    sort = rng.choices(["own", "near", "any", "gray"], [50, 32, 14, 4])[0]
    if sort == "own":
        return Look(brightness=rng.uniform(0.85, 1.1))
    if sort == "gray":
        return Look(saturation=0.0, brightness=rng.uniform(0.8, 1.1))
    hue = rng.uniform(-0.05, 0.05) if sort == "near" else rng.random()
    return Look(hue, rng.uniform(0.6, 1.4), rng.uniform(0.75, 1.2))


def sample_thing(name: str, rng: random.Random, library: Library, size: float) -> Thing:
    """In the middle of nowhere: `x` and `y` are 0."""
    style, slug = library.pick(name, rng)
    angle = rng.gauss(0, 10) if rng.random() < 0.7 else 0.0
    stretch = np.exp(rng.gauss(0, 0.12))
    warp = tuple(rng.gauss(0, WARP) for _ in range(18)) if rng.random() < 0.6 else ()
    return Thing(name, style, slug, 0.0, 0.0, size, rng.random() < 0.5, angle, float(stretch), sample_look(rng), warp)


def sample_names(rng: random.Random, library: Library, count: int) -> list[str]:
    """Different names, often of one category."""
    names = [rng.choice(library.names)]
    while len(names) < count:
        category = library.category[names[0]]
        is_same = category and rng.random() < SAME_CATEGORY
        options = [name for name in (library.members[category] if is_same else library.names) if name not in names]
        names.append(rng.choice(options or [name for name in library.names if name not in names]))
    return names


def place(things: list[Thing], rng: random.Random) -> list[Thing]:
    """Anywhere in the picture, without touching."""
    while True:
        placed = []
        for thing in things:
            margin = 0.46 * thing.size
            x, y = (rng.uniform(margin, IMAGE_SIZE - margin) for _ in "xy")
            placed.append(replace(thing, x=x, y=y))
        apart = (
            (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (0.5 * (a.size + b.size)) ** 2
            for i, a in enumerate(placed)
            for b in placed[:i]
        )
        if all(apart):
            return placed


def sample_background(rng: random.Random) -> PictureScene:
    """An empty picture."""
    sort = rng.choices(list(BACKGROUND_SORTS), list(BACKGROUND_SORTS.values()))[0]
    colours = [tuple(rng.randint(0, 255) for _ in "rgb") for _ in "ab"]
    if sort == "plain":
        colours[0] = rng.choice(PLAIN) if rng.random() < 0.6 else colours[0]
        colours[1] = colours[0]
    blur = rng.uniform(0.4, 0.9) if rng.random() < 0.15 else 0.0
    noise = rng.uniform(2, 12) if rng.random() < 0.2 else 0.0
    return PictureScene(sort, tuple(colours), blur=blur, noise=noise, noise_seed=rng.getrandbits(32))


def sample_things(rng: random.Random, library: Library, count: int) -> PictureScene:
    """`count` things that do not touch."""
    scene = sample_background(rng)
    names = sample_names(rng, library, count)
    scene.things = place([sample_thing(name, rng, library, rng.uniform(*SIZES[count])) for name in names], rng)
    return scene


def sample_garment(rng: random.Random, library: Library, split: str = "train") -> PictureScene:
    """A garment's photograph, white on black as it is or, in training, moved and in other shades."""
    garment = Garment(split, rng.randrange(len(library.garments[split][1])))
    scene = PictureScene(garment=garment, noise_seed=rng.getrandbits(32))
    if split == "test":
        return scene
    side = rng.uniform(62, 96)
    left, top = (rng.uniform(min(0, IMAGE_SIZE - side), max(0, IMAGE_SIZE - side)) for _ in "xy")
    garment = replace(garment, is_mirrored=rng.random() < 0.5)
    if rng.random() < 0.7:
        garment = replace(garment, left=left, top=top, side=side)
    if rng.random() < 0.2:
        dark, light = (tuple(rng.randint(*bounds) for _ in "rgb") for bounds in ((0, 90), (165, 255)))
        dark, light = (dark, light) if rng.random() < 0.5 else (light, dark)
        garment = replace(garment, dark=dark, light=light)
    return replace(scene, garment=garment)


def garment_name(garment: Garment, library: Library) -> str:
    """What it is."""
    return GARMENTS[library.garments[garment.split][1][garment.index]]


def sample_picture_clip(rng: random.Random, library: Library) -> PictureClip:
    """A thing that moves, turns into another, grows or shrinks."""
    scene = sample_background(rng)
    event = rng.choice(["move", "become", rng.choice(["grow", "shrink"])])
    name, other = sample_names(rng, library, 2)
    size = rng.uniform(30, 44) if event == "move" else rng.uniform(36, 70)
    thing = replace(sample_thing(name, rng, library, size), x=CENTRE, y=CENTRE)
    clip = PictureClip(scene, event, seconds=rng.randint(3, 5), change_at=rng.uniform(0.4, 0.6))
    if event == "move":
        clip.direction, clip.distance = rng.choice(list(DIRECTIONS)), rng.uniform(30, 38)
        start = []
        for step in DIRECTIONS[clip.direction]:
            margin = 0.46 * size
            low, high = margin + max(-step, 0) * clip.distance, IMAGE_SIZE - margin - max(step, 0) * clip.distance
            start.append(rng.uniform(low, high) if low <= high else (low if step < 0 else high))
        clip.start = tuple(start)
    elif event == "become":
        thing = place([thing], rng)[0]
        clip.later = replace(sample_thing(other, rng, library, size), x=thing.x, y=thing.y)
    else:
        thing = replace(thing, x=rng.uniform(36, 48), y=rng.uniform(36, 48))
    scene.things = [thing]
    return clip
