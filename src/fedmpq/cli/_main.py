"""The root of the command line and the one handler of errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from fedmpq import __version__
from fedmpq.cli._common import example, json_wanted
from fedmpq.cli._table import COMMANDS
from fedmpq.errors import EXIT_CODES, FedmpqError, MissingExtraError

#: Packages of an extra -> the extra to name when one of them is missing.
_EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "executorch": "export",
    "onnxruntime": "export",
    "numpy": "coordinator",
    "sklearn": "coordinator",
    "PIL": "coordinator",
    "platformdirs": "coordinator",
    "matplotlib": "coordinator",
    "amqtt": "coordinator",
}


class LazyGroup(click.Group):
    """A group whose commands come from `COMMANDS` and are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order, which is the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called `cmd_name`; None if the table has none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a click command")
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names from the table, and options as every command does."""
        names = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "FEDMPQ",
        "show_default": True,
    },
    epilog=example("fedmpq demo", "fedmpq plan resnet20 --bits 4 --batch 1", "fedmpq data info cifar10")
    + "\n\n\b\nExit codes:\n"
    + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()),
)
@click.version_option(__version__, "--version", prog_name="fedmpq")
def root() -> None:
    """Train neural networks in integers, on every device at the bit-widths its memory allows.

    Results are printed on standard output, or as one JSON document with --json; progress goes to standard error. Every
    option can be given as FEDMPQ_<COMMAND>_<OPTION> in the environment.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 on success, otherwise one of `EXIT_CODES`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; the one place where errors are caught."""
    try:
        code = root.main(arguments, prog_name="fedmpq", standalone_mode=False)
    except FedmpqError as error:
        return _fail(arguments, error.message, error.hint, error.exit_code, type(error).__name__)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"see {context.command_path} --help" if context is not None else ""
        message = error.format_message().rstrip(".")
        return _fail(arguments, message[:1].lower() + message[1:], hint, error.exit_code, type(error).__name__)
    except (click.Abort, KeyboardInterrupt):
        print("fedmpq: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise
        missing = MissingExtraError(package, _EXTRA_OF[package])
        return _fail(arguments, missing.message, missing.hint, missing.exit_code, type(missing).__name__)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(arguments, f"{where}{error.strerror or error}", "", 1, type(error).__name__)
    return code if isinstance(code, int) else 0


def _fail(arguments: Sequence[str], message: str, hint: str, exit_code: int, kind: str) -> int:
    """Print one line on standard error and, where JSON was asked for, the error as the one document."""
    line = "\n  ".join(" ".join(part.split()) for part in message.splitlines())  # a list stays a list
    print(f"fedmpq: error: {line}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    if json_wanted(arguments):
        document = {"error": {"type": kind, "message": message, "hint": hint, "exit_code": exit_code}}
        print(json.dumps(document, indent=2))
    return exit_code
