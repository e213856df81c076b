"""The entry point: fast, complete in its help, and one sentence on failure."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainyard_api.architectures import ARCHITECTURES
from trainyard_cli.main import COMMANDS

TRAINYARD = Path(sys.executable).with_name("trainyard")


def run(*arguments: str, program: Path = TRAINYARD, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "120", "TERM": "dumb"} | env
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=60)


def test_every_command_is_in_the_help_of_both_programs():
    for program in (TRAINYARD, TRAINYARD.with_name("kubectl-trainyard")):
        done = run("--help", program=program)
        assert done.returncode == 0, done.stderr
        for command in COMMANDS:
            assert command in done.stdout


@pytest.mark.parametrize("module", COMMANDS.values())
def test_a_command_is_light_to_import(module: str):
    """Help and completion import all of them: none may pull in torch or the Kubernetes client by being imported."""
    heavy = "torch,torchvision,kubernetes,boto3,trainyard_operator"
    code = f"import sys, {module}; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", COMMANDS.values())
def test_a_command_says_what_it_does(module: str):
    assert importlib.import_module(module).__doc__


def test_architectures_lists_the_catalogue_in_every_format():
    assert "yard-nano" in run("architectures").stdout
    assert [row["name"] for row in json.loads(run("architectures", "-o", "json").stdout)] == list(ARCHITECTURES)
    assert yaml.safe_load(run("architectures", "-o", "yaml").stdout) == json.loads(
        run("architectures", "-o", "json").stdout
    )


def test_an_unknown_command_is_refused_with_the_nearest_one():
    done = run("architecture")
    assert done.returncode != 0
    assert "architectures" in done.stderr
    assert "Traceback" not in done.stderr


def test_version():
    assert run("--version").stdout.startswith("trainyard ")


@pytest.mark.parametrize(("shell", "first"), [("bash", "complete_bash"), ("zsh", "complete_zsh")])
def test_the_shell_completes_commands(shell: str, first: str):
    done = run(
        _TRAINYARD_COMPLETE=first,
        COMP_WORDS="trainyard arch",
        COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="trainyard arch",
    )
    assert "architectures" in done.stdout, done.stderr
