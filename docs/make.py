"""Write the generated pages, ``configuration.md`` and ``command-line.md``: ``python docs/make.py``."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from iisan.cli import app
from iisan.config import ColumnConfig, Config, Section
from iisan.recipes import default

HERE = Path(__file__).parent
CONFIGURATION = """\
# Configuration

A run is described by one configuration. It starts from a [recipe](experiments.md#methods); a YAML file states only
what differs from it, and `--set key.key=value` takes precedence over both. An unknown key is an error. The
complete configuration of a run is `config.yaml` in its folder; passed to `iisan train`, it repeats the run.

```yaml
recipe: default
dataset: my-data
states: my-states
modalities: [image, text, description]
columns: {description: {kind: text, levels: group-6}}
items: {bottleneck: 128}
training: {epochs: 30, seed: 3}
```

Defaults below are those of the recipe `default`. The equations that settings refer to are in
[The method](method.md). This page is written by `python docs/make.py`.
"""
COMMAND_LINE = """\
# Command line

Every command prints one sentence and exits with code 2 if its input is wrong; finished work is kept, and repeating
an interrupted command resumes it. Paths may be addresses in [object stores](cloud.md). `--json` prints the result
for machines; everything else then goes to standard error. This page is written by `python docs/make.py`.

"""


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def section(title: str, config: Section, prefix: str = "") -> str:
    """One table: the settings of a section that are no sections themselves."""
    first, _, rest = inspect.cleandoc(str(type(config).__doc__)).partition("\n\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", rest, re.MULTILINE)
    texts = {name: " ".join(text.replace("``", "`").split()) for name, text in found}
    values = config.model_dump(mode="json")
    rows = [
        f"| `{prefix}{name}` | `{_yaml(values[name])}` | {text} |"
        for name, text in texts.items()
        if not isinstance(getattr(config, name), Section)
    ]
    return "\n".join(
        [
            f"## {title}",
            "",
            first.replace("``", "`"),
            "",
            "| key | `default` | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def configuration() -> str:
    """The settings of the recipe ``default``, section by section."""
    config = default()
    parts = [CONFIGURATION, section("Top level", config), section("`text` and `image`", config.text)]
    parts.append(section("`columns.NAME`", ColumnConfig(), "columns.NAME."))
    for name in Config.model_fields:
        value = getattr(config, name)
        if isinstance(value, Section) and name not in ("text", "image"):
            parts.append(section(f"`{name}`", value, f"{name}."))
    return "\n".join(parts)


def command_line() -> str:
    """The help of all commands."""
    group = typer.main.get_command(app)
    context = group.make_context("iisan", [], resilient_parsing=True)
    text = get_docs_for_click(obj=group, ctx=context, name="iisan")
    # From the first command on; Markdown would take <item_id> for a tag where it is not code.
    commands = text[text.index("\n## ") + 1 :]
    escaped = "`".join(
        part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(commands.split("`"))
    )
    return COMMAND_LINE + escaped.strip() + "\n"


PAGES: dict[str, Callable[[], str]] = {"configuration.md": configuration, "command-line.md": command_line}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text(), encoding="utf-8")
