"""What can go wrong, one class per exit code.

    AtopipeError          1  unexpected error
    ├── UsageError        2  invalid option, configuration or network
    ├── GateFailed        3  a gate failed: a valid negative result
    ├── Inconclusive      4  inconclusive: a measurement cannot decide a gate
    ├── MissingError      5  missing dependency, execution provider, data set or disk space
    └── Interrupted     130  interrupted by the user; complete stages stay usable

The message of each is one sentence for the user: the name, the value and the remedy.
"""

EXPORT_OR_PARITY = 6


class AtopipeError(Exception):
    """A failure whose message is one sentence for the user: the name, the value and the remedy."""

    exit_code = 1


class UsageError(AtopipeError):
    exit_code = 2


class GateFailed(AtopipeError):
    exit_code = 3


class Inconclusive(AtopipeError):
    exit_code = 4


class MissingError(AtopipeError):
    exit_code = 5


class Interrupted(AtopipeError):
    exit_code = 130


class ParityGateFailed(GateFailed):
    """The delivered file does not compute what the trained network computes."""

    exit_code = EXPORT_OR_PARITY


class DataError(AtopipeError):
    """The data cannot be used: the message names the path or the source, and the remedy."""

    exit_code = UsageError.exit_code


class MissingDataError(DataError):
    """The data is not there."""

    exit_code = MissingError.exit_code
