"""Errors whose message is one sentence: what was found, what was expected, how to fix it."""


class IisanError(Exception):
    """Base class for bad input or an unusable environment; the command line prints it and exits with code 2.

    Args:
        got: The offending value and its location.
        expected: Description of valid input.
        cure: Instruction that fixes the problem.
    """

    def __init__(self, got: str, expected: str, cure: str) -> None:
        super().__init__(got, expected, cure)
        self.got = got
        self.expected = expected
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}: {self.cure}"


class ConfigError(IisanError):
    """A configuration key or value that cannot be used."""


class DataError(IisanError):
    """A table, row, image or dataset folder that cannot be used."""


class EncoderError(IisanError):
    """A pretrained model or processor that cannot be loaded or is not supported."""


class StoreError(IisanError):
    """A state store that is damaged, foreign, incomplete or has different settings."""


class RunError(IisanError):
    """A run folder that cannot be used, or a training run that cannot continue."""


class RemoteError(IisanError):
    """An address of an object store that cannot be read or written."""


class ClusterError(IisanError):
    """A cluster that cannot be reached, or workers that cannot do what they are asked for."""


class MissingExtraError(IisanError):
    """An optional library that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{library} is not installed, but {purpose} needs it",
            f"the extra '{extra}'",
            f'run: pip install "iisan[{extra}]"',
        )
