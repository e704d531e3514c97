"""
Which things have names: candidates by category, and the rule that chooses among them before any training.

    python examples/tiny/picture_names.py --cache ~/.cache/llava-mini-pictures   # writes picture_names.json

A candidate is an everyday word for a thing that no person stands for, with the slugs of its pictures. It is chosen if
its pictures agree across artists: for every ordered pair of training styles by different artists that both have it,
the nearest candidates in the other style, by edges and pixels in any of eight orientations, are looked up; it must be
among the nearest `NEAREST` in at least `AGREEMENT` of the pairs, and at least `MIN_ARTISTS` artists must draw it. The
artists kept for measuring take no part.
"""

import argparse
import json
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from colours import name_colour
from pictures import DEFAULT_CACHE, SOURCES, TRAINING_STYLES, load_style
from PIL import Image


FILE = Path(__file__).parent / "picture_names.json"
NEAREST, AGREEMENT, MIN_ARTISTS = 10, 0.5, 3
EDGES_SIDE, COLOURS_SIDE = 48, 12
TURNS = [(flip, turn) for flip in (1, -1) for turn in range(4)]
# A word is its own slug unless slugs stand behind "=".
CANDIDATES = {
    "animal": """ant badger bat bear beaver beetle bird butterfly camel=camel,two-hump-camel cat=cat,cat-face chicken
        chick=baby-chick,front-facing-baby-chick crab cricket crocodile deer dodo dog=dog,dog-face dolphin donkey
        dove dragon=dragon,dragon-face duck eagle elephant sheep=ewe fish flamingo fly fox frog giraffe goat
        goose gorilla hamster hedgehog hippo=hippopotamus bee=honeybee horse=horse,horse-face jellyfish kangaroo
        koala ladybug=lady-beetle leopard lion lizard llama lobster monkey=monkey,monkey-face moose mosquito
        mouse=mouse,mouse-face octopus otter owl cow=cow,cow-face panda parrot peacock penguin pig=pig,pig-face
        poodle rabbit=rabbit,rabbit-face raccoon ram rat rhino=rhinoceros rooster scorpion seal shark shrimp
        skunk sloth snail snake spider squid swan dinosaur=sauropod,t-rex tiger=tiger,tiger-face turkey turtle
        unicorn whale=whale,spouting-whale wolf worm zebra caterpillar=bug""",
    "fruit": """apple=red-apple,green-apple avocado banana blueberries cherries coconut grapes kiwi=kiwi-fruit lemon
        lime mango melon peach pear pineapple strawberry tangerine watermelon""",
    "vegetable": """broccoli carrot corn=ear-of-corn cucumber eggplant garlic lettuce=leafy-green mushroom onion
        pepper=bell-pepper chili=hot-pepper potato tomato""",
    "food": """bacon bagel bread burger=hamburger burrito butter cake=birthday-cake,shortcake candy cheese=cheese-wedge
        chocolate=chocolate-bar cookie croissant cupcake doughnut dumpling egg fries=french-fries hotdog=hot-dog
        honey=honey-pot lollipop pancakes pie pizza popcorn pretzel pudding=custard rice=cooked-rice
        salad=green-salad sandwich spaghetti steak=cut-of-meat sushi taco waffle""",
    "drink": """beer=beer-mug cocktail=cocktail-glass coffee=hot-beverage milk=glass-of-milk soda=cup-with-straw
        wine=wine-glass""",
    "vehicle": """airplane=airplane,small-airplane ambulance bicycle bus=bus,oncoming-bus canoe
        car=automobile,oncoming-automobile firetruck=fire-engine helicopter motorcycle rocket sailboat
        scooter=kick-scooter ship=ship,passenger-ship skateboard sled taxi=taxi,oncoming-taxi tractor
        train=train,locomotive tram truck=delivery-truck,articulated-lorry ufo=flying-saucer
        wheelchair=manual-wheelchair""",
    "instrument": """accordion banjo drum=drum,long-drum flute guitar maracas piano=musical-keyboard saxophone
        trumpet violin""",
    "garment": """bikini boot=womans-boot,hiking-boot cap=billed-cap coat dress glasses gloves goggles handbag
        hat=womans-hat,top-hat jeans kimono sandal=womans-sandal,thong-sandal sari scarf shorts
        sneaker=running-shoe socks sunglasses swimsuit=one-piece-swimsuit t-shirt tie=necktie""",
    "tool": """axe broom dagger hammer key ladder magnet paintbrush pen pencil razor saw=carpentry-saw scissors
        screwdriver syringe toothbrush wrench""",
    "plant": """blossom bouquet cactus clover=four-leaf-clover,shamrock hibiscus lotus palm=palm-tree rose sunflower
        tree=deciduous-tree,evergreen-tree tulip""",
    "building": """bank castle church factory hospital hotel house=house,house-with-garden hut mosque school tent""",
    "device": """battery camera=camera,camera-with-flash computer=desktop-computer flashlight headphones=headphone
        joystick keyboard laptop microphone microscope phone=mobile-phone printer radio telephone telescope
        television""",
    # Nothing that these have in common has an everyday name: they are named, but not asked about by category.
    "": """anchor backpack balloon baseball basket basketball bathtub bed bell bomb
        book=closed-book,blue-book,green-book books brick bucket candle chair cloud coin comet compass
        couch=couch-and-lamp crown die=game-die door envelope feather fire fountain gift=wrapped-gift
        hourglass=hourglass-done,hourglass-not-done kite lightning=high-voltage medal=sports-medal mirror
        moon=full-moon,crescent-moon mountain=mountain,snow-capped-mountain newspaper planet=ringed-planet
        rainbow ring rock shield snowflake snowman soap sponge spoon sun teapot teddy=teddy-bear thermometer
        toilet tornado trophy umbrella=umbrella,umbrella-with-rain-drops volcano volleyball watch window yarn""",
}


def candidates() -> dict[str, dict]:
    """`{name: {"category": ..., "slugs": [...]}}`."""
    found = {}
    for category, words in CANDIDATES.items():
        for word in words.split():
            name, _, slugs = word.partition("=")
            found[name] = {"category": category, "slugs": (slugs or name).split(",")}
    return found


def all_slugs() -> tuple[str, ...]:
    """Of every candidate."""
    return tuple(sorted({slug for entry in candidates().values() for slug in entry["slugs"]}))


@cache
def load_names() -> dict[str, dict]:
    """The chosen names, each with `category`, `slugs`, `colour` (of most styles, or None) and `agreement`."""
    return json.loads(FILE.read_text())


def describe(cutout: np.ndarray) -> np.ndarray:
    """What covers which place, of which colour, and which way its edges go, each centred and of length 1."""
    from skimage.feature import hog  # only to choose anew

    picture = Image.fromarray(cutout).convert("RGBa")
    large, small = (np.asarray(picture.resize((side, side)), np.float32) / 255 for side in (EDGES_SIDE, COLOURS_SIDE))
    edges = hog(large, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), channel_axis=-1)
    parts = [part - part.mean() for part in (small[..., 3].ravel(), small[..., :3].ravel(), edges)]
    return np.concatenate([part / (np.linalg.norm(part) + 1e-6) for part in parts])


def measure_agreement(styles: dict[str, dict[str, np.ndarray]]) -> dict[str, tuple[float, int]]:
    """By candidate, the share of ordered pairs in which it is found again, and how many artists draw it."""
    entries = candidates()
    owner = {slug: name for name, entry in entries.items() for slug in entry["slugs"]}
    slugs = {style: list(cutouts) for style, cutouts in styles.items()}
    features = {style: np.stack([describe(c) for c in cutouts.values()]) for style, cutouts in styles.items()}
    turned = {
        style: [
            np.stack([describe(np.ascontiguousarray(np.rot90(c[:, ::flip], turn))) for c in cutouts.values()])
            for flip, turn in TURNS
        ]
        for style, cutouts in styles.items()
    }
    hits, pairs, artists = Counter(), Counter(), defaultdict(set)
    for style in styles:
        for slug in slugs[style]:
            artists[owner[slug]].add(SOURCES[style].artist)
        for other in styles:
            if SOURCES[other].artist == SOURCES[style].artist:
                continue
            theirs = [owner[slug] for slug in slugs[other]]
            likeness = np.max([view @ features[other].T for view in turned[style]], axis=0)
            for slug, nearest in zip(slugs[style], (-likeness).argsort(1)[:, :NEAREST]):
                if owner[slug] in theirs:
                    pairs[owner[slug]] += 1
                    hits[owner[slug]] += owner[slug] in {theirs[i] for i in nearest}
    return {name: (hits[name] / max(pairs[name], 1), len(artists[name])) for name in entries}


def choose(cache_folder: Path) -> dict[str, dict]:
    """The rule in this module's first lines."""
    styles = {style: load_style(style, all_slugs(), cache_folder) for style in TRAINING_STYLES}
    chosen = {}
    for name, (agreement, drawn) in measure_agreement(styles).items():
        entry = candidates()[name]
        if agreement >= AGREEMENT and drawn >= MIN_ARTISTS:
            colours = Counter(
                name_colour(cutouts[slug]) for cutouts in styles.values() for slug in entry["slugs"] if slug in cutouts
            )
            colour, count = colours.most_common(1)[0]
            is_clear = colour is not None and count > colours.total() / 2
            chosen[name] = entry | {"colour": colour if is_clear else None, "agreement": round(agreement, 2)}
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    chosen = choose(parser.parse_args().cache)
    lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(chosen.items())]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(chosen)} of {len(candidates())} names in {FILE}")


if __name__ == "__main__":
    main()
