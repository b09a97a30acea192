"""What an experiment runs on: images, clients and their budgets, model, length of training; and those things made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.data import Dataset, dirichlet, iid, load
from fedmpq.data.report import Reporter, silent
from fedmpq.edge_runtime import container
from fedmpq.errors import ConfigError, StateError, UsageError

#: The paper's budgets of ten clients (inferred), mean 4.0; the list is repeated for more clients.
BUDGETS = (2.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 6.0, 6.0, 8.0)

_FILE = "setting.json"


@dataclass(frozen=True)
class Setting:
    """Everything of a run that is not part of its RunConfig's strategy.

    Attributes:
        data: data set: a name, a folder or an archive.
        model: built-in model or package.module:factory.
        clients: number of clients.
        alpha: of the Dirichlet partition over classes; None deals the images out evenly.
        budgets: average bit-widths, repeated over the clients.
        rounds, epochs, batch, lr: of the training.
        train, test: at most so many images; None for all.
        validation: judge on so many (below 1: such a share of) training images held out, not on the test images.
        seed: fixes partition, first model and training.
        on_empty: what to do about a client without images: "stop" or "drop".
        attack: bad clients, KIND:SHARE[:FACTOR] (coordinator/attacks.py); None for none.
        referee: so many training images are kept from the clients for `robust = "referee"`; None for none.
    """

    data: str = "digits"
    model: str = "resnet8"
    clients: int = 10
    alpha: float | None = 0.5
    budgets: tuple[float, ...] = BUDGETS
    rounds: int = 10
    epochs: int = 1
    batch: int = 64
    lr: float = 0.1
    train: int | None = None
    test: int | None = None
    validation: float = 0.0
    seed: int = 1
    on_empty: str = "stop"
    attack: str | None = None
    referee: int | None = None

    def __post_init__(self) -> None:
        """Refuses what no run could keep to; UsageError names the budget."""
        if not self.budgets:
            raise UsageError("no budgets given", "average bit-widths from 1 to 8, such as 2,4,6,8")
        if self.attack is not None:
            Attack.parse(self.attack)
        for bits in self.budgets:
            if not 1 <= bits <= 8:
                raise UsageError(
                    f"a budget of {bits:g} bits is impossible", "a layer has 1 to 8 magnitude planes, the sign aside"
                )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**dataclasses.asdict(self), "budgets": list(self.budgets)}


@dataclass(frozen=True)
class Prepared:
    """A setting with its images dealt out.

    Attributes:
        setting: what was asked for.
        dataset: all images.
        fleet: private data by client name.
        caps: budget by client name.
        judged: images that global models are judged on.
        referee: images that updates are judged on, by the rule of that name.
    """

    setting: Setting
    dataset: Dataset
    fleet: Mapping[str, ArraySamples]
    caps: Mapping[str, float]
    judged: ArraySamples
    referee: ArraySamples | None = None

    @property
    def judged_on(self) -> str:
        """Which images judge: "validation" or "test"."""
        return "validation" if len(self.dataset.validation) else "test"

    @property
    def crop_pad(self) -> int:
        """Padding of the random crop: an eighth of the images' height, as 4 pixels of 32."""
        return min(16, self.judged.shape[0] // 8)


def prepare(setting: Setting, report: Reporter = silent) -> Prepared:
    """Loads the images and deals them out.

    Raises:
        DataError: no such data, or the partition leaves a client empty (says which); UsageError: too many clients.
    """
    dataset = load(setting.data, validation=setting.validation, seed=setting.seed, report=report)
    dataset = dataset.limit(setting.train, setting.test, setting.seed)
    classes = len(dataset.classes)
    train, kept = dataset.train, None
    if setting.referee:
        if setting.referee >= len(train):
            raise UsageError(f"--referee {setting.referee} leaves no training images")
        drawn = np.random.default_rng([setting.seed, setting.referee]).permutation(len(train))
        kept = train.take(np.sort(drawn[: setting.referee]))
        train = train.take(np.sort(drawn[setting.referee :]))
    labels = train.labels
    if setting.clients > len(labels):
        raise UsageError(f"{setting.clients} clients cannot share {len(labels)} images")
    on_empty: Any = setting.on_empty
    if setting.alpha is None:
        parts = iid(labels, setting.clients, setting.seed, on_empty)
    else:
        parts = dirichlet(labels, setting.clients, setting.alpha, setting.seed, on_empty=on_empty)
    width = len(str(setting.clients - 1))
    fleet, caps = {}, {}
    for part in parts:
        name = f"client-{part.client:0{width}d}"
        fleet[name] = ArraySamples(train.images[part.indices], labels[part.indices], classes)
        caps[name] = float(setting.budgets[part.client % len(setting.budgets)])
    judged = dataset.validation if len(dataset.validation) else dataset.test
    referee = None if kept is None else ArraySamples(kept.images, kept.labels, classes)
    return Prepared(setting, dataset, fleet, caps, ArraySamples(judged.images, judged.labels, classes), referee)


def claim(folder: Path, setting: Setting) -> None:
    """Notes the setting in a run's folder, so that a run is only ever continued on the same data.

    Raises:
        ConfigError: the folder holds a run of another setting; names the key.
        StateError: its note of the setting is damaged.
    """
    path = folder / _FILE
    if path.is_file():
        old = read_document(path, "remove it and start with the same options, or choose another --out")
        for key, value in setting.to_dict().items():
            if old.get(key) != value:
                raise ConfigError(
                    f"{folder} holds a run with {key} = {old.get(key)!r}, not {value!r}",
                    "start with the same setting or choose another --out",
                )
        return
    container.write_atomic(path, (json.dumps(setting.to_dict(), indent=1) + "\n").encode())


def read_document(path: Path, hint: str) -> dict[str, Any]:
    """A JSON document that an earlier run has written; StateError with the hint if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise StateError(f"{path} is damaged", hint)
    return found
