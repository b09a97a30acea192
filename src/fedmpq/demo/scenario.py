"""What the demo trains on which data, sized for two processor cores: choices measured in docs/results.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Average bits that the four devices' memory limits are made for.
BUDGETS = (2, 4, 6, 8)


@dataclass(frozen=True)
class Scenario:
    """One demo.

    Attributes:
        data: name of a data set, or a folder or archive of images.
        model: built-in model or package.module:factory.
        train_images: training images used, every class in proportion; None for all.
        round_test_images: test images that judge every round; the last model is judged on all of them.
        crop_pad: padding of the random crop in pixels.
        run: keys of the run's configuration.
    """

    data: str
    model: str = "resnet8"
    train_images: int | None = None
    round_test_images: int = 2000
    crop_pad: int = 0
    run: dict[str, Any] = field(default_factory=dict)


_COMMON: dict[str, Any] = {"batch": 32, "deadline_s": 120.0, "eval_budgets": False, "min_devices": len(BUDGETS)}


def scenario_for(data: str) -> Scenario:
    """The scenario of a data set; any folder or archive of images is treated like CIFAR-10."""
    if data == "digits":
        run = {"rounds": 12, "epochs": 2, "lr": 0.1, "crop": True, "flip": False}
        return Scenario(data, crop_pad=1, run={**_COMMON, **run})
    if data == "fashion-mnist":
        run = {"rounds": 14, "epochs": 2, "lr": 0.1, "crop": False, "flip": False}
        return Scenario(data, train_images=6000, run={**_COMMON, **run})
    run = {"rounds": 12, "epochs": 2, "lr": 0.1, "crop": True, "flip": True}
    return Scenario(data, train_images=8000, crop_pad=4, run={**_COMMON, **run})
