"""The documentation says what the code does."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from iisan.nested import flatten
from iisan.recipes import RECIPES, default

ROOT = Path(__file__).resolve().parents[1]


def test_every_setting_is_documented_with_its_default():
    spec = spec_from_file_location("make", ROOT / "docs" / "make.py")
    make = module_from_spec(spec)
    spec.loader.exec_module(make)
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == make.page(), "run: python docs/make.py"
    keys = [key.removeprefix("text.") for key, _ in flatten(default().model_dump(mode="json"))]
    assert all(f"| `{key}` |" in text for key in keys if not key.startswith("image."))


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_every_part_of_the_house_is_listed(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for part in sorted(path.name.removesuffix(".py") for path in (ROOT / "src" / "iisan").iterdir()):
        if part.startswith("__") or part == "py.typed":
            continue
        assert f"{part}.py" in text or f"{part}/" in text, part


def test_every_recipe_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in RECIPES)


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
