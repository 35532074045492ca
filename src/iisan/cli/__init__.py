"""The command line: parse, call, print. Commands import heavy libraries only when they run."""

import sys
import warnings

from iisan.cli import data, doctor, download, items, prepare, runs, serve, studies
from iisan.cli.common import app, shown
from iisan.errors import IisanError, RemoteError
from iisan.machine import wait_briefly

__all__ = ["app", "data", "doctor", "download", "items", "main", "prepare", "runs", "serve", "studies"]


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    wait_briefly()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except IisanError as error:
        # Errors of addresses also say where their copies are.
        _stop(str(error) if isinstance(error, RemoteError) else shown(str(error)))
    except OSError as error:
        where = f" ('{error.filename}')" if error.filename else ""
        _stop(f"{error.strerror or error}{where}; finished work is kept: resolve this and run the command again")
    except UnicodeEncodeError as error:
        _stop(f"{error.object!r} is not valid text; expected UTF-8; check how it was typed")


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
