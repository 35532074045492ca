"""Checks of a finished run: whether its evaluation is sound, and what its numbers rest on."""
