"""The process `atopipe`: its exit code, and what went wrong as one sentence."""

import errno
import io
import os
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.tools.pack import pack
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.failures import OUT_OF_SPACE, Failure, explain
from atopipe.pipeline.system.job import may_speak, this_job
from atopipe.pipeline.system.openmp import wait_without_spinning
from atopipe.pipeline.system.signals import StopRequest, handled_by
from atopipe.pipeline.system.text import did_you_mean, printable

cli.add_command(pack)


def main(argv: Sequence[str] | None = None) -> int:
    """The process: returns its exit code, and prints what went wrong as one sentence.

    A process of a job says so even while its launcher ends it, because another one failed first.
    """
    wait_without_spinning()
    _open_closed_streams()
    with handled_by(StopRequest().note, *([signal.SIGTERM] if this_job().size > 1 else [])):
        return _run(argv)


def _open_closed_streams() -> None:
    """Else the first file that is opened would take the place of a closed stream, and of what is printed there."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # what a terminal has no characters for is written as escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Not cli.main, which ends the process itself where a reader of its output has gone.
        with cli.make_context("atopipe", list(sys.argv[1:] if argv is None else argv)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except BaseException as error:
        failure = _of_output(error) or _failure(error)
        if failure is None:
            raise
        if failure.message and may_speak():
            with suppress(OSError):  # standard error may be full as well
                click.echo(f"atopipe: {printable(failure.message)}", err=True)
        return failure.exit_code
    return 0


def _of_output(error: BaseException) -> Failure | None:
    """The failure of standard output itself: none where its reader has seen enough, as `head -1` has."""
    cause = error.__context__ if isinstance(error, SystemExit) else error  # rich ends the process
    if not isinstance(cause, OSError) or cause.filename is not None:
        return None
    if cause.errno == errno.EPIPE:
        _silence_output()
        return Failure("", 0)
    if not _output_is_full():
        return None
    _silence_output()
    why = f"standard output cannot be written ({cause.strerror}): send it where there is space"
    return Failure(why, MissingError.exit_code)


def _output_is_full() -> bool:
    """Whether standard output is a device that takes nothing, or a file where no space is left."""
    try:
        number = sys.stdout.fileno()
        os.write(number, b"")
        return stat.S_ISREG(os.fstat(number).st_mode) and os.fstatvfs(number).f_bavail == 0
    except OSError as error:
        return error.errno in OUT_OF_SPACE
    except (AttributeError, ValueError):  # there is none, or no file behind it
        return False


def _silence_output() -> None:
    """What is still in its buffer would fail once more when Python ends, and change the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout.flush()


def _failure(error: BaseException) -> Failure | None:
    if isinstance(error, click.exceptions.Exit):
        return Failure("", error.exit_code)
    if isinstance(error, click.Abort):
        return explain(KeyboardInterrupt())
    if isinstance(error, click.NoSuchOption):
        return Failure(_unknown_option(error), UsageError.exit_code)
    if isinstance(error, click.ClickException):
        return Failure(error.format_message().rstrip("."), error.exit_code)
    return explain(error)


def _unknown_option(error: click.NoSuchOption) -> str:
    parameters = error.ctx.command.params if error.ctx else []
    known = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    return f"unknown option '{error.option_name}': {did_you_mean(error.option_name, known) or 'see --help'}"
