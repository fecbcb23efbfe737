"""The errors ARMS raises on purpose, one tree.

Every text says what came, what was expected and what to do next; commands print it without a traceback. The exit code
tells a user's mistake (2) from data or a run that failed (1).
"""


class ArmsError(Exception):
    """Base of all errors that ARMS raises on purpose.

    Attributes:
        exit_code: what a command ends with when it stops for this error.
    """

    exit_code = 1


class ConfigError(ArmsError):
    """A setting, an option or a combination of them that cannot be: the user's mistake."""

    exit_code = 2


class DataError(ArmsError):
    """Data that breaks a contract: a missing column, a truncated picture, a label without a query."""


class EndpointError(ArmsError):
    """A VLM endpoint that did not do what was asked."""


class StorageError(ArmsError):
    """A file that could not be written or read back whole: a full disk, a checksum that does not match."""
