"""`trainyard dataset …` in this process, as a person runs it."""

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest
from trainyard_cli.main import main


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, **environment: str) -> Done:
    """The command line with these arguments, in this process: a new one takes a second each."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["trainyard", "dataset", *map(str, arguments)])
        for name, text in environment.items():
            patch.setenv(name, text)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
