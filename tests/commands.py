"""Commands as the tests call them: in this process, or in one of its own with one thread."""

import os

from typer.testing import CliRunner

from thickets import cli

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def good(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout
