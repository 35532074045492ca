"""Costs of training: estimated, measured; what a machine can do."""
