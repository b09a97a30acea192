"""Dividing a training set among clients: evenly at random, or by a Dirichlet distribution over clients per class.

The Dirichlet partition is that of the FedMPQ experiments (Chen & Vikalo, CVPR 2024): for every class, shares
p ~ Dir(α, …, α) over the clients say how its images are dealt out. Small α means few classes a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmpq.data.dataset import Indices, Labels, apportion
from fedmpq.errors import DataError

OnEmpty = Literal["stop", "drop"]


@dataclass(frozen=True)
class Part:
    """What one client gets.

    Attributes:
        client: the client's number in the partition that was asked for; a dropped client's number stays free.
        indices: sorted indices into the training set.
    """

    client: int
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)


def iid(labels: Labels, clients: int, seed: int, on_empty: OnEmpty = "stop") -> list[Part]:
    """Deal the images out evenly at random; sizes differ by at most one.

    Raises:
        DataError: fewer than one client, or a client left empty under `on_empty="stop"`.
    """
    _check_clients(clients)
    order = np.random.default_rng(seed).permutation(len(labels))
    return _parts([order[client::clients] for client in range(clients)], on_empty)


def dirichlet(
    labels: Labels, clients: int, alpha: float, seed: int, *, min_images: int = 1, on_empty: OnEmpty = "stop"
) -> list[Part]:
    """Deal each class out by shares drawn from Dir(alpha) over the clients.

    Args:
        labels: uint16 [N].
        clients: number of clients, K.
        alpha: concentration, above 0; 0.1 is severe, 1.0 mild.
        seed: fixes the shares and which image goes where.
        min_images: a client with fewer counts as empty.
        on_empty: what to do about an empty client: stop with an error that names it, or drop it.

    Returns:
        The clients that have images, in order of their number. Every image goes to exactly one client, except
        those of dropped clients, which go to none.

    Raises:
        DataError: parameters out of range, or an empty client under `on_empty="stop"`.
    """
    _check_clients(clients)
    if not 1e-3 <= alpha <= 1e6:
        raise DataError(f"cannot partition with alpha = {alpha}", "choose it from 0.001 to 1000000")
    generator = np.random.default_rng(seed)
    dealt: list[list[Indices]] = [[np.empty(0, dtype=np.intp)] for _ in range(clients)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(clients, alpha))
        ends = np.cumsum(apportion(len(members), shares))
        for client, piece in enumerate(np.split(members, ends[:-1])):
            dealt[client].append(piece)
    return _parts([np.concatenate(pieces) for pieces in dealt], on_empty, min_images)


def _check_clients(clients: int) -> None:
    if clients < 1:
        raise DataError(f"cannot partition over {clients} clients", "ask for at least one")


def _parts(dealt: list[Indices], on_empty: OnEmpty, min_images: int = 1) -> list[Part]:
    """Sort each client's indices and treat the empty ones as asked."""
    empty = [client for client, indices in enumerate(dealt) if len(indices) < min_images]
    if empty and (on_empty == "stop" or len(empty) == len(dealt)):
        numbers = ", ".join(str(client) for client in empty)
        what = "no images" if min_images == 1 else f"fewer than {min_images} images"
        raise DataError(
            f"the partition leaves client{'s' if len(empty) > 1 else ''} {numbers} with {what}",
            "use another seed, a larger alpha or fewer clients, or drop empty clients",
        )
    return [Part(client, np.sort(indices)) for client, indices in enumerate(dealt) if client not in empty]
