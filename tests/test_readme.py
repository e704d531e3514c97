"""The README's lines, run as they stand, print what it says."""

import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
MOST_LINES = 230  # of somebody who has just found it
QUIET = "import transformers; transformers.utils.logging.disable_progress_bar()\n"


def find_code(title: str) -> list[str]:
    """The Python of a section."""
    section = re.search(rf"## {title}\n.*?(?=\n## |\Z)", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(code: str, folder: Path) -> str:
    """What it prints, in a folder where nothing of ours lies."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ten_lines(tmp_path):
    printed = re.search(r"## Ten lines\n.*?```\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert run(find_code("Ten lines")[0], tmp_path) == printed


def test_training_with_trl(tmp_path):
    """After the ten lines, as it says."""
    printed = run(QUIET + find_code("Ten lines")[0] + find_code("Train")[0], tmp_path)
    assert "'loss'" in printed or "train_loss" in printed


def test_pictures(tmp_path):
    """After the ten lines, with a clip."""
    code = find_code("See what it reads")[0]
    clip = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
    clip += "from pathlib import Path; from quickstart import write_clip; write_clip(Path('clip.mp4'))\n"
    run(find_code("Ten lines")[0] + clip + code, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"look.png", "sheet.png", "pair.png"}


def test_it_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= MOST_LINES
    for page in (ROOT / "README.md", *ROOT.glob("src/**/README.md"), *ROOT.glob("examples/*/README.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
