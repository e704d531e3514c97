"""Questions, pictures and scores of the small model's tasks."""

from pathlib import Path


DATA = Path(__file__).parent / "data"


def to_visual(doc: dict) -> list:
    """The picture itself, or the path of a picture or clip."""
    if "picture" in doc:
        return [doc["picture"].convert("RGB")]
    return [str(DATA / doc["path"])]


def score(doc: dict, results: list[str]) -> dict:
    """Exact match, as examples/tiny/evaluate.py counts."""
    return {"exact_match": float(results[0] == doc["answer"])}
