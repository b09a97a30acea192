"""`fedmpq completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fedmpq.cli._common import emit, example, json_option
from fedmpq.errors import UsageError


@click.command(
    "completion",
    epilog=example(
        'eval "$(fedmpq completion bash)"',
        "fedmpq completion fish > ~/.config/fish/completions/fedmpq.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def command(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print a shell completion script."""
    completion = get_completion_class(shell)
    if completion is None:
        raise UsageError(f"no completion for {shell}", "use bash, zsh or fish")
    script = completion(ctx.find_root().command, {}, "fedmpq", "_FEDMPQ_COMPLETE").source()
    emit({"shell": shell, "script": script}, as_json, lambda result: click.echo(result["script"]))
