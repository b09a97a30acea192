"""The rule "referee": whose model names images by the wrong labels is left out of the round.

The coordinator holds labelled images of its own. It runs every client's model on them as that client sent it, and asks
one question of it: for each label, which class's images does it give that label to most readily, its own or another?
What a client has few or many images of does not matter for that: a client with rare classes seldom gives their labels
to anything, but still to the right images first. One that was taught wrong labels gives them to the wrong images.

A model's *margin* is that answer as one number, computed from the log-probability of every label on the images of
every class: less the mean of its class and the mean of its label (which is where unequal shares of classes show), the
class that a label belongs to, less the best of the others, summed over labels and divided by the size of the columns.
All from the core's exact sums of losses, in integers; so every machine leaves out the same clients.

Margins of honest clients lie close together in each round, wherever training is. Left out is who lies further below
the median than `SPREADS` times the median distance from it (at least `LEAST_SPREAD`); who was left out of the round
before comes back only within half of that. So at least half of the clients stay, whatever happens.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from math import isqrt

from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine, loaded
from fedmpq.coordinator.fixed import median
from fedmpq.edge_runtime.trainer import Layer, Samples
from fedmpq.errors import ConfigError

#: One in units of a margin.
ONE = 1 << 16
SPREADS = 3
#: Smallest spread that is taken seriously: 0.02.
LEAST_SPREAD = ONE // 50
#: Classes that are judged in one round, for data sets of many classes; others have their turn in the next rounds.
CLASSES = 16
#: Fewer clients than this cannot be told apart.
CLIENTS = 4


class Referee:
    """Judges models on images that no client has and that no result is reported on.

    Args:
        engine: what computes.
        config: batch, guard planes and activation bits.
        samples: the images, of at least two classes.

    Raises:
        ConfigError: images of fewer than two classes.
    """

    def __init__(self, engine: Engine, config: RunConfig, samples: Samples) -> None:
        self.engine, self.config, self.samples = engine, config, samples
        self._of: dict[int, list[int]] = {}
        for index in range(samples.count):
            _, labels = samples.batch([index])
            self._of.setdefault(labels[0], []).append(index)
        if len(self._of) < 2:
            raise ConfigError(f"the referee has images of {len(self._of)} classes", "it needs at least two")

    def margin(self, layers: Sequence[Layer], round_no: int) -> int:
        """The margin of one model, in 1/65536."""
        labels = self._labels(round_no)
        session = loaded(self.engine, self.config, layers)
        losses = []
        for own in labels:
            sums = [0] * len(labels)
            for start in range(0, len(self._of[own]), self.config.batch):
                chosen = self._of[own][start : start + self.config.batch]
                images, _ = self.samples.batch(chosen)
                for column, label in enumerate(labels):
                    given = memoryview(array("H", [label]) * len(chosen))
                    sums[column] += session.evaluate(images, given).loss_q16
            losses.append(sums)
        return margin(losses, [len(self._of[label]) for label in labels])

    def _labels(self, round_no: int) -> list[int]:
        """The classes whose turn it is."""
        known = sorted(self._of)
        if len(known) <= CLASSES:
            return known
        first = round_no * CLASSES
        return sorted(known[(first + i) % len(known)] for i in range(CLASSES))


def margin(losses: Sequence[Sequence[int]], counts: Sequence[int]) -> int:
    """A model's margin in 1/65536, see above.

    Args:
        losses: [class][label], sum over the class's images of the loss if they had that label, in 2**-16 nat.
        counts: images of each class.
    """
    size = len(counts)
    rows = [[-(value << 16) // count for value in row] for row, count in zip(losses, counts, strict=True)]
    rows = [[size * value - sum(row) for value in row] for row in rows]
    columns = [[size * value - sum(column) for value in column] for column in zip(*rows, strict=True)]
    gained = sum(column[own] - max(column[:own] + column[own + 1 :]) for own, column in enumerate(columns))
    total = sum(isqrt(sum(value * value for value in column)) for column in columns)
    return gained * ONE // total if total else 0


def outliers(margins: Sequence[int], before: Collection[int] = ()) -> list[int]:
    """Indices of the clients to leave out of a round.

    Args:
        margins: of the round's clients.
        before: indices of those that were left out of the last round they took part in.
    """
    if len(margins) < CLIENTS:
        return []
    middle = median(margins)
    room = SPREADS * max(LEAST_SPREAD, median([abs(value - middle) for value in margins]))
    return [i for i, value in enumerate(margins) if middle - value > (room // 2 if i in before else room)]
