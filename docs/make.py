"""Write ``configuration.md`` from the docstrings of the configuration: ``python docs/make.py``."""

import inspect
import json
import re
from pathlib import Path

from iisan.config import ColumnConfig, Config, Section
from iisan.recipes import default

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration

A run is described by one configuration. It starts from a recipe (the [README](../README.md) lists them); a YAML
file states only what differs, and `--set key.key=value` has the last word. An unknown key is an error. The
complete, resolved configuration of every run is kept as `config.yaml` in its folder; given back to `iisan train`,
it repeats the run.

```yaml
recipe: default
dataset: my-data
states: my-states
modalities: [image, text, description]
columns: {description: {kind: text, levels: group-6}}
items: {bottleneck: 128}
training: {batch_size: 256, seed: 3}
```

Defaults are those of the recipe `default`. This page is written by `python docs/make.py`.
"""


def section(title: str, config: Section, prefix: str = "") -> str:
    """One table: the settings of a section that are no sections themselves."""
    first, _, rest = inspect.cleandoc(str(type(config).__doc__)).partition("\n\nAttributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", rest, re.MULTILINE)
    texts = {name: " ".join(text.replace("``", "`").split()) for name, text in found}
    values = config.model_dump(mode="json")
    rows = [
        f"| `{prefix}{name}` | `{json.dumps(values[name])}` | {text} |"
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


def page() -> str:
    """The page's text."""
    config = default()
    parts = [HEAD, section("Top level", config), section("`text` and `image`", config.text)]
    parts.append(section("`columns.NAME`", ColumnConfig(), "columns.NAME."))
    for name in Config.model_fields:
        value = getattr(config, name)
        if isinstance(value, Section) and name not in ("text", "image"):
            parts.append(section(f"`{name}`", value, f"{name}."))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
