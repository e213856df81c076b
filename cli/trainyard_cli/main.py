"""The entry point: which commands there are, and how a failure is said.

A command's module is imported when the command is used, not before: `trainyard job list` must not wait for what
`trainyard dataset check` needs. To add one, write `trainyard_cli/<module>.py` with `app = typer.Typer(add_completion=False)` (an app of a single
command becomes that command) and add its line to `COMMANDS`. Keep heavy imports inside the functions of that module, since
`--help` and completion import all of them.
"""

import importlib
import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trainyard_cli.errors import CLIError

COMMANDS: dict[str, str] = {
    "architectures": "trainyard_cli.architectures",
    "dataset": "trainyard_cli.dataset",
    "job": "trainyard_cli.job",
    "service": "trainyard_cli.service",
    "budget": "trainyard_cli.budget",
    "model": "trainyard_cli.model",
    "run": "trainyard_cli.run",
}
"""Name of the command, and the module whose `app` it is; in the order of the help."""


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            # Typer suggests the nearest name out of this mapping.
            self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="trainyard",
    cls=LazyGroup,
    help="Train vision models on Kubernetes: jobs on a cluster, datasets, and training on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trainyard {version('trainyard')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def sentence(error: BaseException) -> str:
    """What a person is told about a failure that no command foresaw: its own words, or its kind when it has none."""
    text = " ".join(str(error).split())
    if isinstance(error, CLIError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text or type(error).__name__


def main() -> None:
    """Run the command line. Every failure ends in one sentence on stderr and exit code 1; TRAINYARD_DEBUG=1 shows where."""
    try:
        typer.main.get_command(app)()
    except Exception as error:
        if os.environ.get("TRAINYARD_DEBUG"):
            raise
        print(f"Error: {sentence(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
