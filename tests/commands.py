"""The command line in this process, as a person runs it: a new one takes a second each."""

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


def trainyard(*arguments: object, stdin: str = "", **environment: str) -> Done:
    """`trainyard …` with these arguments, this text to read and these variables over those of the process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["trainyard", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        for name, text in environment.items():
            patch.setenv(name, text)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def dataset(*arguments: object, **environment: str) -> Done:
    return trainyard("dataset", *arguments, **environment)
