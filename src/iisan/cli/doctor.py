"""The command ``doctor``."""

from iisan.cli.common import Json, app
from iisan.printing import print_diagnosis, print_json


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine can do, what is missing, and how to install it."""
    from iisan.efficiency.doctor import diagnose

    found = diagnose()
    print_json(found) if as_json else print_diagnosis(found)
