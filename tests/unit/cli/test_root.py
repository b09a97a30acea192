"""The root of the command line: laziness, help, errors as one line, JSON errors, exit codes, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from fedmpq.cli._main import COMMANDS, root, run
from fedmpq.errors import EXIT_CODES, ArenaTooSmall, BudgetError, CoreError, DataError, FedmpqError, MissingExtraError


def leaves(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words."""
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += leaves(command, (*prefix, name))
        else:
            found.append(((*prefix, name), command))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_agrees_with_the_commands(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_json(name, capsys):
    command = root.get_command(click.Context(root), name)
    group = leaves(command, (name,)) if isinstance(command, click.Group) else [((name,), command)]
    for words, leaf in [((name,), command), *group]:
        assert run([*words, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Example" in text, words
        assert f"fedmpq {' '.join(words)}" in text.partition("Example")[2], words
        if not isinstance(leaf, click.Group):
            assert "--json" in text, words


def test_no_arguments_show_the_help_and_fail(capsys):
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_help_and_version_import_no_command():
    code = (
        "import sys; from fedmpq.cli._main import run; code = run([sys.argv[1]]);"
        "heavy = {'torch', 'numpy', 'rich', 'onnx', 'fedmpq.cli.data'} & set(sys.modules); sys.exit(code or len(heavy))"
    )
    for argument in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout


class Failing(click.Command):
    """A command that raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("failing")
        self.error = error

    def invoke(self, ctx: click.Context) -> None:
        raise self.error


@pytest.fixture
def fail_with(monkeypatch):
    """Make `fedmpq data` raise an error; returns the function that runs it."""

    def run_with(error: BaseException, *arguments: str) -> int:
        monkeypatch.setattr(type(root), "get_command", lambda *_: Failing(error))
        return run(["data", *arguments])

    return run_with


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no images in x", "add some"), 4, "fedmpq: error: no images in x (add some)"),
        (DataError("no  images"), 4, "fedmpq: error: no images"),
        (BudgetError("too small", needed=9, available=5), 7, "fedmpq: error: too small"),
        (MissingExtraError("torch", "export"), 3, "pip install 'fedmpq[export]'"),
        (ModuleNotFoundError("no onnx", name="onnx.helper"), 3, "pip install 'fedmpq[export]'"),
        (
            FileNotFoundError(2, "No such file or directory", "a.bin"),
            1,
            "fedmpq: error: a.bin: No such file or directory",
        ),
        (click.UsageError("No such option."), 2, "fedmpq: error: no such option"),
        (KeyboardInterrupt(), 130, "fedmpq: interrupted"),
        (click.Abort(), 130, "fedmpq: interrupted"),
    ],
)
def test_errors_become_one_line_and_a_code(fail_with, capsys, error, code, line):
    assert fail_with(error) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert line in output.err
    assert "\n" not in output.err.strip()


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), ModuleNotFoundError("x", name="fedmpq.gone")])
def test_mistakes_of_ours_keep_their_traceback(fail_with, error):
    with pytest.raises(type(error)):
        fail_with(error)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_an_error_is_the_one_json_document(capsys, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("FEDMPQ_JSON", "1")
    assert run(["data", "info", "nowhere", *(["--json"] if how == "option" else [])]) == 4
    output = capsys.readouterr()
    error = json.loads(output.out)["error"]
    assert error["type"] == "DataError"
    assert error["exit_code"] == 4
    assert error["message"] in output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no such command"),
        (["data", "nonsense"], "no such command"),
        (["data", "info"], "missing argument"),
        (["data", "info", "digits", "--wrong"], "no such option"),
        (["data", "info", "digits", "--size", "32"], "is no image size"),
        (["data", "partition", "digits", "--clients", "0", "--out", "x"], "not in the range"),
        (["completion", "tcsh"], "is not one of"),
    ],
)
def test_wrong_usage(capsys, arguments, words):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "--help)" in error
    assert error.count("\n") == 1


def test_options_come_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("FEDMPQ_DATA_INFO_SIZE", "nonsense")
    assert run(["data", "info", "digits"]) == 2
    assert "is no image size" in capsys.readouterr().err


def test_every_error_class_has_a_documented_code():
    def below(kind: type[FedmpqError]) -> set[type[FedmpqError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    assert {kind.exit_code for kind in below(FedmpqError)} <= set(EXIT_CODES)


def test_an_arena_too_small_names_both_numbers():
    error = ArenaTooSmall(planned=1001, limit=1000)
    assert isinstance(error, BudgetError)
    assert isinstance(error, CoreError)
    assert (error.planned, error.limit, error.needed, error.available) == (1001, 1000, 1001, 1000)
    assert "1001 bytes" in str(error)
    assert "1000 are allowed" in str(error)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys, shell):
    assert run(["completion", shell]) == 0
    assert "_FEDMPQ_COMPLETE" in capsys.readouterr().out


def test_completion_offers_commands_and_options():
    def complete(words: str) -> str:
        variables = {"_FEDMPQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-m", "fedmpq"],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert complete("fedmpq c").split() == ["plain,coordinator", "plain,completion"]
    assert "plain,--alpha" in complete("fedmpq data partition --al")


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fedmpq", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_readme_lists_the_exit_codes():
    readme = Path(__file__).parents[3] / "README.md"
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", readme.read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_a_list_in_an_error_stays_a_list(fail_with, capsys):
    assert fail_with(DataError("two problems:\na\nb")) == 4
    assert capsys.readouterr().err == "fedmpq: error: two problems:\n  a\n  b\n"
