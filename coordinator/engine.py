"""The two engines that can train and judge in this process: the C core and the PyTorch reference.

Both give the same bits. The trainer takes a module-like object with `Plan`, `LayerState` and `Hyper`, and a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmpq.coordinator.config import RunConfig
from fedmpq.edge_runtime.protocol import Settings
from fedmpq.edge_runtime.trainer import Layer, core_plan, load_layer
from fedmpq.errors import ConfigError

ENGINES = ("core", "torch")


class Engine:
    """Opens sessions of one engine on one program.

    Args:
        name: "core" or "torch".
        program: the program's bytes.

    Attributes:
        api: the engine's `Plan`, `LayerState`, `Hyper`.
        device: what the torch engine computes on, "cuda" where there is one.
    """

    def __init__(self, name: str, program: bytes) -> None:
        self.name = name
        self.program = program
        self.api: Any
        self.device = "cpu"
        if name == "core":
            from fedmpq.edge_runtime import core

            self.api = core
            self._parsed: Any = core.Program(program)
        elif name == "torch":
            import torch

            from fedmpq.models import reference

            self.api = reference
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
            self._parsed = program
        else:
            raise ConfigError(f"unknown engine {name!r}", f"one of {', '.join(ENGINES)}")

    def plan(self, settings: Settings, bits: Sequence[int]) -> Any:
        """A plan of this engine."""
        return core_plan(self.api, settings, bits)

    def session(self, settings: Settings, bits: Sequence[int]) -> Any:
        """A new session; its layers are not loaded yet."""
        plan = self.plan(settings, bits)
        if self.name == "core":
            return self.api.Session(self._parsed, plan)
        return self.api.ReferenceSession(self._parsed, plan, self.device)


def loaded(engine: Engine, config: RunConfig, layers: Sequence[Layer]) -> Any:
    """A session that holds a model as a device would."""
    session = engine.session(config.settings, [layer.bits for layer in layers])
    for index, layer in enumerate(layers):
        load_layer(engine.api, session, index, layer, config.guard)
    return session
