"""Image data sets, their partition over clients and the shards that devices map.

    data = load("fashion-mnist", validation=5_000)
    parts = dirichlet(data.train.labels, clients=4, alpha=0.5, seed=1, classes=len(data.classes))
    write_split("client-0.shard", data, data.train.take(parts[0].indices))

Images are uint8 [N, H, W, C] everywhere: the integer program starts from pixels.
"""

from fedmpq.data.dataset import Dataset, Split, stratified_choice
from fedmpq.data.partition import Part, dirichlet, iid
from fedmpq.data.shard import write_partition, write_split
from fedmpq.data.sources import NAMES, load

__all__ = [
    "NAMES",
    "Dataset",
    "Part",
    "Split",
    "dirichlet",
    "iid",
    "load",
    "stratified_choice",
    "write_partition",
    "write_split",
]
