"""The process `atopipe`: its exit code, and what went wrong as one sentence."""

import errno
import io
import signal
import sys
from collections.abc import Sequence

import click

from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.tools.pack import pack
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.failures import Failure, explain
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
    with handled_by(StopRequest().note, *([signal.SIGTERM] if this_job().size > 1 else [])):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # what a terminal has no characters for is written as escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(args=argv, prog_name="atopipe", standalone_mode=False)
    except BaseException as error:
        failure = _failure(error)
        if failure is None:
            raise
        if failure.message and may_speak():
            click.echo(f"atopipe: {printable(failure.message)}", err=True)
        return failure.exit_code
    return 0


def _failure(error: BaseException) -> Failure | None:
    if isinstance(error, click.exceptions.Exit):
        return Failure("", error.exit_code)
    if isinstance(error, click.Abort):
        return explain(KeyboardInterrupt())
    if isinstance(error, click.NoSuchOption):
        return Failure(_unknown_option(error), UsageError.exit_code)
    if isinstance(error, click.ClickException):
        return Failure(error.format_message().rstrip("."), error.exit_code)
    if isinstance(error, SystemExit) and getattr(error.__context__, "errno", None) == errno.EPIPE:
        return Failure("", 0)  # who reads has seen enough, as `head -1` has
    return explain(error)


def _unknown_option(error: click.NoSuchOption) -> str:
    parameters = error.ctx.command.params if error.ctx else []
    known = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    return f"unknown option '{error.option_name}': {did_you_mean(error.option_name, known) or 'see --help'}"
