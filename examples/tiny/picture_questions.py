"""Questions and answers about pictures of things, garments and their clips, by type; three wordings each."""

import random

from colours import COLOUR_WORDS
from picture_scenes import CENTRE, Library, PictureClip, PictureScene, Thing, colour_of, garment_name
from pictures import GARMENTS
from questions import MIN_SEPARATION, Question


PLURALS = {
    "animal": "animals",
    "fruit": "fruits",
    "vegetable": "vegetables",
    "food": "foods",
    "drink": "drinks",
    "vehicle": "vehicles",
    "instrument": "instruments",
    "garment": "garments",
    "tool": "tools",
    "plant": "plants",
    "building": "buildings",
    "device": "devices",
}
# What nobody would call wrong in the other category either: no question tells these apart.
OVERLAPPING = {"food": {"fruit", "vegetable", "drink"}, "fruit": {"food"}, "vegetable": {"food"}, "drink": {"food"}}
MANY = {
    "blueberries", "cherries", "fries", "glasses", "gloves", "grapes", "headphones", "jeans", "maracas", "pancakes",
    "scissors", "shorts", "socks", "sunglasses", "books",
}  # fmt: skip
MASS = {
    "beer", "bread", "broccoli", "butter", "cheese", "chocolate", "coffee", "corn", "fire", "garlic", "honey",
    "lettuce", "lightning", "milk", "popcorn", "pudding", "rice", "salad", "soda", "spaghetti", "sushi", "wine",
}  # fmt: skip
# Guessing rate of somebody who knows the possible answers, but not the picture. Of names: set when they are loaded.
NUM_NAMES = 233
CHANCE = {
    "name": 1 / NUM_NAMES,
    "category": 1 / len(PLURALS),
    "thing on a side": 1 / NUM_NAMES,
    "how many": 1 / 4,
    "is there": 1 / 2,
    "what is not": 1 / NUM_NAMES,
    "thing colour": 1 / len(COLOUR_WORDS),
    "thing position": 1 / 2,
    "thing caption": 0.0,
    "absent thing": 0.0,
    "garment": 1 / len(GARMENTS),
    "thing in a video": 1 / NUM_NAMES,
    "thing direction": 1 / 4,
    "thing order": 1 / NUM_NAMES,
    "thing growth": 1 / 2,
}


def with_article(name: str) -> str:
    """As a caption calls it."""
    if name in MANY or name in MASS:
        return name
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


def say_absent(name: str) -> str:
    """The answer to a question about what the picture does not show."""
    return f"there {'are' if name in MANY else 'is'} no {name}"


def caption(scene: PictureScene) -> str:
    """The things from left to right."""
    names = [with_article(thing.name) for thing in sorted(scene.things, key=lambda thing: thing.x)]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def about_picture(scene: PictureScene, library: Library, rng: random.Random) -> list[Question]:
    """All that can be asked about a picture."""
    if scene.garment is not None:
        texts = ["What garment is this?", "Which piece of clothing is it?", "Name the garment."]
        return [Question("garment", rng.choice(texts), garment_name(scene.garment, library))]
    texts = ["Describe the picture.", "What does the picture show?", "What is in the picture?"]
    questions = [Question("thing caption", rng.choice(texts), caption(scene))]
    if len(scene.things) == 1:
        questions += _about_one(scene.things[0], library, rng)
    questions += _existence(scene, library, rng) + _absence(scene, library, rng) + _categories(scene, library, rng)
    for thing in scene.things:
        questions += _attributes(thing, library, rng)
    return questions + _sides(scene, library, rng)


def about_picture_clip(clip: PictureClip, rng: random.Random) -> list[Question]:
    """All that can be asked about a video."""
    name = clip.scene.things[0].name
    questions = []
    if clip.event == "become":
        first = ["What comes first?", "What is shown first?", "What do you see first?"]
        last = ["What comes last?", "What is shown last?", "What do you see last?"]
        questions.append(Question("thing order", rng.choice(first), name))
        questions.append(Question("thing order", rng.choice(last), clip.later.name))
        return questions
    texts = ["What is this?", "What is in the video?", "What do you see?"]
    questions.append(Question("thing in a video", rng.choice(texts), name))
    does, it = ("do" if name in MANY else "does"), rng.choice([f"the {name}", f"the {name}", "the thing"])
    does = "does" if it == "the thing" else does
    if clip.event == "move":
        texts = [f"Which way {does} {it} move?", f"In which direction {does} {it} move?", f"Where {does} {it} go?"]
        questions.append(Question("thing direction", rng.choice(texts), clip.direction))
    if clip.event in ("grow", "shrink"):
        texts = [f"{does.title()} {it} grow or shrink?", f"{does.title()} {it} shrink or grow?"]
        texts.append(f"{does.title()} {it} get larger or smaller, grow or shrink?")
        questions.append(Question("thing growth", rng.choice(texts), clip.event))
    return questions


def vocabulary(names: dict[str, dict]) -> list[str]:
    """Every word that these questions and answers are made of, for the tokenizer."""
    texts = []
    for name in names:
        be, does = ("are", "do") if name in MANY else ("is", "does")
        texts += [name] * 12 + [
            f"What {be} the {name}?",
            with_article(name),
            say_absent(name),
            f"{does} {name} {name}.",
        ]
    texts += [" ".join([*PLURALS, *PLURALS.values(), *COLOUR_WORDS, *GARMENTS])] * 30
    rng = random.Random(0)
    fixed = (
        "What garment is this? Which piece of clothing is it? Name the garment. What kind of thing is this? What sort "
        "of thing do you see? Which kind is it? Do you see a? Can you see a in the picture? Is there a? Are there? "
        "Tell me the colour of the. Tell me the color of the. How many are there? How many do you see? Count the. "
        "Which is on the left? on the right? What is on the left? What is not an? Which thing is not a? Name what is "
        "not. What comes first? What is shown last? In which direction does the thing move? Where does go? get larger "
        "or smaller, grow or shrink? there is no there are no yes no left right Where is the, left or right? Is the "
        "on the left or on the right? Describe the picture. What does the picture show? What is in the video? What do "
        "you see? Which do you see, what is missing, which colour does have color what tell name count describe is are "
        "do does can how in where"
    )
    return texts + [fixed, fixed.lower().replace("colour", "color")] * 30 + [str(rng.randint(0, 9)) for _ in range(9)]


def _about_one(thing: Thing, library: Library, rng: random.Random) -> list[Question]:
    texts = ["What is this?", "What do you see?", "What is in the picture?"]
    questions = [Question("name", rng.choice(texts[:2]), thing.name)]
    category = library.category[thing.name]
    if category:
        texts = ["What kind of thing is this?", "What sort of thing do you see?", "Which kind of thing is it?"]
        questions.append(Question("category", rng.choice(texts), category))
    return questions


def _ask_existence(name: str, rng: random.Random) -> str:
    if name in MANY:
        return rng.choice([f"Are there {name}?", f"Do you see {name}?", f"Can you see {name} in the picture?"])
    what = with_article(name)
    return rng.choice([f"Is there {what}?", f"Do you see {what}?", f"Can you see {what} in the picture?"])


def pick_absent(scene: PictureScene, library: Library, rng: random.Random) -> str:
    """A name that the picture doesn't show, half of the time one like what it shows."""
    present = [thing.name for thing in scene.things]
    near = library.members[library.category[rng.choice(present)]]
    options = [name for name in (near if rng.random() < 0.5 else library.names) if name not in present]
    return rng.choice(options or [name for name in library.names if name not in present])


def _existence(scene: PictureScene, library: Library, rng: random.Random) -> list[Question]:
    """One question answered yes, one no; a name, or a category."""
    present = [thing.name for thing in scene.things]
    shown, absent = rng.choice(present), pick_absent(scene, library, rng)
    categories = {library.category[name] for name in present} - {""}
    if categories and rng.random() < 0.25:
        others = [c for c in PLURALS if c not in categories and not OVERLAPPING.get(c, set()) & categories]
        shown, absent = rng.choice(sorted(categories)), rng.choice(others)
    return [Question("is there", _ask_existence(name, rng), yes) for name, yes in ((shown, "yes"), (absent, "no"))]


def _ask_colour(name: str, rng: random.Random) -> str:
    be, have = ("are", "do") if name in MANY else ("is", "does")
    texts = [f"What colour {be} the {name}?", f"Which colour {have} the {name} have?"]
    return rng.choice([*texts, f"Tell me the colour of the {name}."])


def _ask_position(name: str, rng: random.Random) -> str:
    be = "are" if name in MANY else "is"
    texts = [f"{be.title()} the {name} on the left or on the right?", f"Where {be} the {name}, left or right?"]
    return rng.choice([*texts, f"On which side {be} the {name}?"])


def _absence(scene: PictureScene, library: Library, rng: random.Random) -> list[Question]:
    """About what is not there; the right answer says so."""
    absent = pick_absent(scene, library, rng)
    text = rng.choice([_ask_colour, _ask_position])(absent, rng)
    return [Question("absent thing", text, say_absent(absent))]


def _attributes(thing: Thing, library: Library, rng: random.Random) -> list[Question]:
    questions = []
    colour = colour_of(thing, library)
    if colour is not None:
        questions.append(Question("thing colour", _ask_colour(thing.name, rng), colour))
    offset = thing.x - CENTRE
    if abs(offset) > MIN_SEPARATION / 2:
        side = "right" if offset > 0 else "left"
        questions.append(Question("thing position", _ask_position(thing.name, rng), side))
    return questions


def _categories(scene: PictureScene, library: Library, rng: random.Random) -> list[Question]:
    """Counts of a category, and what is not of it."""
    own = [library.category[thing.name] for thing in scene.things]
    clear = [c for c in PLURALS if not OVERLAPPING.get(c, set()) & set(own)]
    questions = []
    # No set: its order changes from process to process.
    for category in dict.fromkeys([*(c for c in own if c in clear), rng.choice(clear)]):
        plural = PLURALS[category]
        texts = [f"How many {plural} are there?", f"How many {plural} do you see?", f"Count the {plural}."]
        # A number of 0 comes up too often otherwise.
        questions.append(Question("how many", rng.choice(texts), str(own.count(category))))
        rest = [thing.name for thing, c in zip(scene.things, own) if c != category]
        if len(rest) == 1 and len(own) > 1:
            what = category if category == "food" else with_article(category)
            texts = [f"What is not {what}?", f"Which thing is not {what}?", f"Name what is not {what}."]
            questions.append(Question("what is not", rng.choice(texts), rest[0]))
    return sorted(questions, key=lambda question: question.text)


def _sides(scene: PictureScene, library: Library, rng: random.Random) -> list[Question]:
    """What is leftmost or rightmost of all, or of a category."""
    questions = []
    own = {library.category[thing.name] for thing in scene.things}
    clear = sorted(c for c in own if c and not OVERLAPPING.get(c, set()) & own)
    for category in ("", *clear):
        members = [t for t in scene.things if not category or library.category[t.name] == category]
        members.sort(key=lambda thing: thing.x)
        what = f"Which {category}" if category else rng.choice(["What", "Which thing"])
        for side, thing, other in (("left", members[0], members[1:2]), ("right", members[-1], members[-2:-1])):
            if other and abs(thing.x - other[0].x) >= MIN_SEPARATION:
                noun = category or "thing"
                texts = [f"{what} is on the {side}?", f"{what} do you see on the {side}?"]
                text = rng.choice([*texts, f"Name the {noun} on the {side}."])
                questions.append(Question("thing on a side", text, thing.name))
    return questions
