"""
The pictures of things: cut-outs of emoji by several artists and Fashion-MNIST's photographs, fetched from packages into
a folder outside git and drawn once. Needs `npm`, for garments `apt-get` and `dpkg-deb`; licences: `SOURCES`.

    python examples/tiny/pictures.py --cache ~/.cache/llava-mini-pictures
"""

import argparse
import gzip
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


SIDE = 96  # of a stored cut-out; the pictures have 84 pixels
DEFAULT_CACHE = Path.home() / ".cache" / "llava-mini-pictures"


@dataclass(frozen=True)
class Source:
    """An artist's set: the npm package with its version, and what its licence is."""

    artist: str
    package: str
    version: str
    licence: str
    in_training: bool = True


SOURCES = {
    "noto": Source("Google", "@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "noto-v1": Source("Google", "@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "twemoji": Source("Twitter", "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "fluent": Source("Microsoft", "@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "fluent-flat": Source("Microsoft", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "fluent-3d": Source("Microsoft", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT"),
    "fxemoji": Source("Mozilla", "@iconify-json/fxemoji", "1.2.2", "Apache-2.0"),
    "streamline": Source("Streamline", "@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0"),
    "emojione-v1": Source("Emoji One", "@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0", in_training=False),
    "openmoji": Source("OpenMoji", "@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", in_training=False),
}
TRAINING_STYLES = tuple(style for style, source in SOURCES.items() if source.in_training)
# The artists that no training sees: the first is the card's, the second draws black outlines.
UNSEEN_STYLES = tuple(style for style, source in SOURCES.items() if not source.in_training)
GARMENTS_PACKAGE = "dataset-fashion-mnist"  # Debian, MIT
GARMENTS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def fetch_package(style: str, cache_folder: Path) -> Path:
    """The unpacked npm package of an artist."""
    source = SOURCES[style]
    folder = cache_folder / f"{style}-{source.version}"
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(folder / packed) as archive:
            archive.extractall(folder, filter="data")
        (folder / packed).unlink()
    return folder / "package"


def to_cutout(picture: Image.Image) -> np.ndarray:
    """Cropped to what is not transparent, on a square of `(96, 96, 4)`."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    if box is not None:
        picture = picture.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    # Premultiplied: what is transparent has no colour to bleed.
    return np.asarray(square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))


def _render(icons: dict, slug: str) -> Image.Image:
    import resvg_py  # only to draw them anew

    icon = icons["icons"][slug]
    width, height = (icon.get(name, icons.get(name, 16)) for name in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))))


def draw_svg(style: str, slug: str, cache_folder: Path) -> Image.Image:
    """One picture of an artist whose set is SVG, in RGBA, of 192x192 pixels."""
    return _render(json.loads((fetch_package(style, cache_folder) / "icons.json").read_text()), slug).convert("RGBA")


def draw_style(style: str, slugs: list[str], cache_folder: Path) -> dict[str, np.ndarray]:
    """The artist's cut-outs `(96, 96, 4)` of these slugs, of those that there are."""
    package = fetch_package(style, cache_folder)
    if style == "fluent-3d":
        codes = json.loads((fetch_package("noto", cache_folder) / "chars.json").read_text())
        files = {slug: package / "assets" / f"{code}.webp" for code, slug in codes.items()}
        # Some of its names have the variation selector, that the table leaves out.
        files |= {slug: file.with_stem(f"{file.stem}-fe0f") for slug, file in files.items() if not file.exists()}
        return {slug: to_cutout(Image.open(files[slug])) for slug in slugs if slug in files and files[slug].exists()}
    icons = json.loads((package / "icons.json").read_text())
    # fxemoji writes its slugs without hyphens.
    names = {slug: slug.replace("-", "") if style == "fxemoji" else slug for slug in slugs}
    return {slug: to_cutout(_render(icons, name)) for slug, name in names.items() if name in icons["icons"]}


@cache
def load_style(style: str, slugs: tuple[str, ...], cache_folder: Path) -> dict[str, np.ndarray]:
    """As `draw_style`, drawn once."""
    file = cache_folder / f"{style}-{SOURCES[style].version}.npz"
    stored = dict(np.load(file)) if file.exists() else {"asked": np.array([], dtype=str)}
    missing = sorted(set(slugs) - set(stored["asked"].tolist()))
    if missing:
        stored |= draw_style(style, missing, cache_folder)
        stored["asked"] = np.array(sorted({*stored["asked"].tolist(), *missing}))
        np.savez(file, **stored)
    return {slug: stored[slug] for slug in slugs if slug in stored}


def _read_idx(file: Path) -> np.ndarray:
    content = gzip.decompress(file.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@cache
def load_garments(split: str, cache_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photographs `(n, 28, 28)` and classes `(n,)` of Fashion-MNIST's split, "train" (60,000) or "test" (10,000)."""
    folder = cache_folder / GARMENTS_PACKAGE
    if not folder.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", GARMENTS_PACKAGE], cwd=cache_folder, check=True, capture_output=True)
        package = next(cache_folder.glob(f"{GARMENTS_PACKAGE}*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = (next(folder.rglob(f"{prefix}-{kind}*.gz")) for kind in ("images", "labels"))
    return _read_idx(images), _read_idx(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    arguments = parser.parse_args()
    from picture_names import all_slugs

    for style in SOURCES:
        print(f"{style}: {len(load_style(style, all_slugs(), arguments.cache))} cut-outs")
    for split in ("train", "test"):
        print(f"garments, {split}: {len(load_garments(split, arguments.cache)[0])}")


if __name__ == "__main__":
    main()
