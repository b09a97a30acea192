"""The planes of one round: what each device starts from, derived from the global model when first asked for.

Nothing here is stored: the model's bytes and the run's configuration determine every plane, so a restarted
coordinator serves the same blobs under the same hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmpq.coordinator import planes
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.global_model import DeviceLayer, GlobalLayer, GlobalModel, read_layer, server_key
from fedmpq.coordinator.planes import PackedLayer
from fedmpq.errors import StateError


class Serving:
    """Layer states of a global model at every bit-width of a round.

    Args:
        model: the round's global model.
        config: scale, rounding and activation bits.
        round_no: keys the stochastic rounding.
        program: the program's bytes, served as one more blob.
    """

    def __init__(self, model: GlobalModel, config: RunConfig, round_no: int, program: bytes = b"") -> None:
        self.model = model
        self.config = config
        self.round_no = round_no
        self._layers: dict[tuple[int, int], tuple[DeviceLayer, PackedLayer]] = {}
        self._starts: dict[tuple[int, int], GlobalLayer] = {}
        self._blobs: dict[str, bytes] = {model.layout.program: program} if program else {}
        self._of_bits: dict[tuple[int, ...], dict[str, bytes]] = {}

    def device_layer(self, index: int, bits: int) -> DeviceLayer:
        """Layer `index` at `bits` as integers."""
        return self._get(index, bits)[0]

    def packed(self, index: int, bits: int) -> PackedLayer:
        """Layer `index` at `bits` as blobs."""
        return self._get(index, bits)[1]

    def start(self, index: int, bits: int) -> GlobalLayer:
        """What a device with this layer at `bits` starts from, in global units."""
        key = (index, bits)
        if key not in self._starts:
            shape = self.model.layout.layers[index]
            self._starts[key] = read_layer(shape, self.device_layer(index, bits), self.config.act_bits)
        return self._starts[key]

    def prepare(self, bits: Sequence[int]) -> list[PackedLayer]:
        """All layers of one device."""
        return [self.packed(index, n) for index, n in enumerate(bits)]

    def blobs_of(self, bits: Sequence[int]) -> dict[str, bytes]:
        """All blobs of a device with these bits, by hash; shared, not to be changed."""
        key = tuple(bits)
        if key not in self._of_bits:
            self._of_bits[key] = {
                sha256: data
                for layer in self.prepare(key)
                for sha256, data in zip(layer.blobs.blobs, (*layer.planes, layer.params), strict=True)
            }
        return self._of_bits[key]

    def _get(self, index: int, bits: int) -> tuple[DeviceLayer, PackedLayer]:
        key = (index, bits)
        if key not in self._layers:
            config, shape = self.config, self.model.layout.layers[index]
            layer = self.model.layer_state(
                index,
                bits,
                config.act_bits,
                scale="mse" if config.scale == "mse" else "max",
                rounding="stochastic" if config.rounding == "stochastic" else "nearest",
                key=server_key(config.seed, self.round_no, shape.record, bits),
            )
            blobs = planes.pack(layer)
            self._layers[key] = (layer, blobs)
            for sha256, data in zip(blobs.blobs.blobs, (*blobs.planes, blobs.params), strict=True):
                if self._blobs.setdefault(sha256, data) != data:
                    raise StateError(f"two blobs share the SHA-256 {sha256}")
        return self._layers[key]
