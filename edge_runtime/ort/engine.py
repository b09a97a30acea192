"""ONNX Runtime training 1.19.2 as a training engine: one state vector in, steps, one state vector out.

Its optimiser is plain SGD. Momentum and weight decay are added to the trained values in between, which gives exactly
PyTorch's SGD at a constant rate: w' = w - lr·g - lr·decay·w + momentum·(w - w_before). Batch-norm's running statistics
are outputs of the training graph and become the next step's inputs.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime.ort.bundle import FILES, Bundle
from fedmpq.errors import CoreError, FormatError, MissingExtraError

Floats = NDArray[np.float32]

#: The version whose file format and interface this is written for; there is no later one.
VERSION = "1.19.2"
#: Weight of a batch in running statistics, PyTorch's default.
BATCH_NORM_RATE = 0.1


@dataclass(frozen=True)
class Sgd:
    """Rates of local training."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


def runtime() -> Any:
    """The module onnxruntime with training.

    Importing it also imports torch, wherever that is installed, for a part that is not used here: torch is hidden
    meanwhile, which saves 250 MB and seconds.

    Raises:
        MissingExtraError: it is not installed, or is the plain package, which cannot train.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime-training-cpu", "ort-training") from None
    finally:
        if hidden:
            del sys.modules["torch"]
    if not hasattr(onnxruntime.capi._pybind_state, "Module"):
        raise MissingExtraError(
            f"training (the plain onnxruntime {onnxruntime.__version__} is installed in its place)", "ort-training"
        )
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def version() -> str:
    """Name and version for profiles."""
    return f"onnxruntime-training {runtime().__version__}"


class Engine:
    """A model in training.

    Args:
        bundle: what to train.
        threads: of a step.

    Raises:
        MissingExtraError: no ONNX Runtime with training here; FormatError: it does not read the bundle's graphs.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._onnxruntime = runtime()
        self._c = self._onnxruntime.capi._pybind_state
        self.bundle = bundle
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        device = self._c.OrtDevice(self._c.OrtDevice.cpu(), self._c.OrtDevice.default_memory(), 0)
        with tempfile.TemporaryDirectory(prefix="fedmpq-ort-") as name:
            folder = Path(name)
            bundle.write_files(folder)
            paths = {section: str(folder / file) for section, file in FILES.items()}
            try:
                self._state = self._c.load_checkpoint(paths["state"])
                self._module = self._c.Module(paths["training"], self._state, paths["eval"], device, options)
                self._optimizer = self._c.Optimizer(paths["optim"], self._state, device, options)
            except Exception as error:
                raise FormatError(
                    f"onnxruntime {self._onnxruntime.__version__} cannot load the bundle: {_first_line(error)}",
                    f"it was made with onnxruntime {bundle.engine}",
                ) from error
        outputs = list(self._module.output_names(True))
        self._logits = outputs.index("logits")
        self._statistics = [(outputs.index(output), value, count) for output, value, count in bundle.statistics]
        self._before: Floats | None = None

    # --- state ----------------------------------------------------------------------------------------------------

    def load(self, state: Floats) -> None:
        """Takes a state vector in the manifest's order; momentum starts anew."""
        if state.size != self.bundle.size:
            raise FormatError(f"a state of {state.size} values, the bundle has {self.bundle.size}")
        at = 0
        for value in self.bundle.values:
            part = state[at : at + value.size].reshape(value.shape)
            self._set(value.name, part)
            at += value.size
        self._before = None

    def state(self) -> Floats:
        """The state vector."""
        parts = [self._get(value.name).reshape(-1) for value in self.bundle.values]
        return np.concatenate(parts).astype(np.float32)

    # --- work -----------------------------------------------------------------------------------------------------

    def step(self, images: Floats, labels: NDArray[np.int64], rates: Sgd) -> tuple[float, int]:
        """Trains one batch; images as `augment.network_input` gives them.

        Returns:
            Mean loss and number of correct answers.

        Raises:
            CoreError: the runtime failed, or the loss is not a number.
        """
        before = self._trained() if rates.momentum or rates.weight_decay else None
        try:
            outputs = self._run(self._module.train_step, images, labels)
            self._optimizer.set_learning_rate(rates.lr)
            self._optimizer.optimizer_step()
            self._module.lazy_reset_grad()
        except Exception as error:
            raise CoreError(f"onnxruntime failed in a training step: {_first_line(error)}") from error
        loss = float(outputs[0])
        if not np.isfinite(loss):
            raise CoreError(f"training diverged: the loss is {loss}", "use a smaller learning rate")
        for output, name, positions in self._statistics:
            self._keep_statistic(name, np.asarray(outputs[output], np.float32), positions * len(labels))
        if before is not None:
            after = self._trained() - np.float32(rates.lr * rates.weight_decay) * before
            if self._before is not None:
                after += np.float32(rates.momentum) * (before - self._before)
            self._before = before
            self._module.copy_buffer_to_parameters(self._value(after), True)
        return loss, _correct(outputs[self._logits], labels)

    def evaluate(self, images: Floats, labels: NDArray[np.int64]) -> tuple[float, int]:
        """Mean loss and correct answers of a batch with running statistics."""
        try:
            loss, logits = self._run(self._module.eval_step, images, labels)
        except Exception as error:
            raise CoreError(f"onnxruntime failed in evaluation: {_first_line(error)}") from error
        return float(loss), _correct(logits, labels)

    def _keep_statistic(self, name: str, new: Floats, count: int) -> None:
        """Takes a running statistic; the graph's variances are those of `count` values, without Bessel's correction."""
        if count > 1:
            old = np.float32(1 - BATCH_NORM_RATE) * self._get(name)
            new = np.asarray(old + (new - old) * np.float32(count / (count - 1)), np.float32)
        self._set(name, new)

    def _trained(self) -> Floats:
        """The trained values, in the runtime's own order."""
        values = np.empty(self._module.get_parameters_size(True), np.float32)
        buffer = self._value(values)
        self._module.copy_parameters_to_buffer(buffer, True)
        return np.array(buffer.numpy(), np.float32)

    # --- the runtime's C interface ------------------------------------------------------------------------------

    def _run(self, step: Any, images: Floats, labels: NDArray[np.int64]) -> list[Any]:
        fetches = self._c.OrtValueVector()
        step([images, labels], fetches)
        return [value.numpy() for value in fetches]

    def _value(self, array: Floats) -> Any:
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(array)._ortvalue

    def _get(self, name: str) -> Floats:
        return np.asarray(self._state.get_parameter(name).data.numpy(), np.float32)

    def _set(self, name: str, values: Floats) -> None:
        self._state.copy_parameter_from(name, self._value(np.ascontiguousarray(values, np.float32)))


def _correct(logits: Any, labels: NDArray[np.int64]) -> int:
    return int((np.asarray(logits).argmax(axis=1) == labels).sum())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
