"""``python -m iisan.cli``."""

from iisan.cli import main

main()
