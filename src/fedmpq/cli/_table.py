"""Every command's name, where it lives and its one-line help, so that `fedmpq --help` imports no command.

One line a command. `module:object` is imported only when the command is run or its own help is asked for. A test
compares each line here with the command's own short help.
"""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("fedmpq.cli.export:command", "Compile a PyTorch model into an artifact for a budget."),
    "inspect": (
        "fedmpq.cli.inspect:command",
        "Show what an artifact holds, or what of a model can be exported.",
    ),
    "plan": ("fedmpq.cli.plan:command", "Show the exact memory that training would take."),
    "train": ("fedmpq.cli.train:command", "Train an artifact on this machine, without a network."),
    "device": ("fedmpq.cli.device:command", "Profile this device or run it as a member of a fleet."),
    "coordinator": ("fedmpq.cli.coordinator:command", "Serve a fleet and look into it."),
    "profiles": ("fedmpq.cli.profiles:command", "List, show and check device profiles."),
    "simulate": ("fedmpq.cli.simulate:command", "Simulate federated runs in one process."),
    "build": ("fedmpq.cli.build:command", "Build programs for a device class on this machine."),
    "bench": ("fedmpq.cli.bench:command", "Measure speed and memory of training here."),
    "data": ("fedmpq.cli.data:command", "Import, partition and inspect data sets."),
    "demo": ("fedmpq.cli.demo:command", "Run a broker, a coordinator and four devices on real images."),
    "completion": ("fedmpq.cli.completion:command", "Print a shell completion script."),
}
