"""The documentation says what the code does."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer

from iisan.cli import app
from iisan.nested import flatten
from iisan.recipes import RECIPES, default

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {ROOT / "docs" / name for name in ("configuration.md", "command-line.md")}
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - GENERATED)]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_generated_pages_are_up_to_date():
    spec = spec_from_file_location("make", ROOT / "docs" / "make.py")
    make = module_from_spec(spec)
    spec.loader.exec_module(make)
    for name, text in make.PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text(), "run: python docs/make.py"


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = [key.removeprefix("text.") for key, _ in flatten(default().model_dump(mode="json"))]
    assert all(f"| `{key}` |" in text for key in keys if not key.startswith("image."))


def test_every_command_is_documented():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        section = text.split(f"\n## `iisan {name}`\n")[1].split("\n## ")[0]
        assert all(option in section for parameter in command.params for option in parameter.opts if "-" in option)


def commands(page):
    """The ``iisan`` commands of a page's shell blocks, as lists of arguments."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if language in ("", "bash", "console") and line.removeprefix("$ ").startswith("iisan "):
                yield shlex.split(line.removeprefix("$ "), comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_settings_exist(page):
    group = typer.main.get_command(app)
    for name, *arguments in commands(page):
        context = group.commands[name].make_context(name, arguments)
        default().override(context.params.get("settings") or ())


def test_the_commands_are_found():
    found = [command for page in PAGES for command in commands(page)]
    assert {"prepare", "cache", "train", "evaluate", "recommend", "compare"} <= {name for name, *_ in found}


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.search(
            r'<(script|link|img)[^>]+(src|href)="(https?:)?//', page.read_text(encoding="utf-8")
        ), page
    assert "Recommender" in (tmp_path / "api.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_every_part_of_the_house_is_listed(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for part in sorted(path.name.removesuffix(".py") for path in (ROOT / "src" / "iisan").iterdir()):
        if part.startswith("__") or part == "py.typed":
            continue
        assert f"{part}.py" in text or f"{part}/" in text, part


@pytest.mark.parametrize("document", ["README.md", "docs/experiments.md"])
def test_every_recipe_is_listed(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in RECIPES)


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
