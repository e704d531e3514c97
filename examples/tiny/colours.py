"""What colour a cut-out has: a word, or none where no colour prevails."""

import colorsys

import numpy as np


# A colour is named when it covers this share of what is not transparent.
PREVAILING = 0.6
OPAQUE = 128
# Hue in degrees up to which a saturated colour has this name; red goes on at the end.
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (170, "green"), (258, "blue"), (295, "purple"), (340, "pink"))
COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "gray", "black")


def _name_pixel(red: float, green: float, blue: float) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.22:
        return "black"
    if saturation < 0.16:
        return "white" if value > 0.85 else "gray"
    hue *= 360
    name = next((word for bound, word in HUES if hue < bound), "red")
    if (name == "orange" and (value < 0.75 or saturation < 0.55)) or (
        name == "red" and value < 0.6 and saturation < 0.7
    ):
        return "brown"
    return name


STEPS = 16  # values of a channel that the table below tells apart
_TABLE = np.array(
    [
        COLOUR_WORDS.index(_name_pixel(*((np.array(index) + 0.5) / STEPS)))
        for index in np.ndindex(STEPS, STEPS, STEPS)
    ],
    dtype=np.int64,
)  # fmt: skip


def name_colour(cutout: np.ndarray) -> str | None:
    """The word for the prevailing colour of 8-bit RGBA pixels `(height, width, 4)`, None where none prevails."""
    pixels = cutout[cutout[..., 3] > OPAQUE][:, :3].astype(np.int64) * STEPS // 256
    if not len(pixels):
        return None
    counts = np.bincount(
        _TABLE[(pixels[:, 0] * STEPS + pixels[:, 1]) * STEPS + pixels[:, 2]], minlength=len(COLOUR_WORDS)
    )
    best = counts.argmax()
    return COLOUR_WORDS[best] if counts[best] >= PREVAILING * len(pixels) else None
