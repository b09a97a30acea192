"""The accuracies the paper prints, in percent (Chen & Vikalo, CVPR 2024), to stand beside ours.

Keys are (data, system) or as said. Systems go by our strategies' names. The values of alpha were lost from the text we
read and are inferred from their order.
"""

from __future__ import annotations

SYSTEMS = ("fedavg", "fedpaq", "uveqfed", "fpq8", "aqfl", "fedmpq")
TITLES = {
    "fedavg": "FP32 (FedAvg)",
    "fedpaq": "FedPAQ",
    "fedpaq8": "FedPAQ, 8 bits",
    "uveqfed": "UVeQFed",
    "uveqfed4": "UVeQFed, rate 4",
    "fpq8": "FPQ8",
    "aqfl": "AQFL",
    "aqfl-paper": "AQFL, literal",
    "fedmpq": "FedMPQ",
    "fedmpq-paper": "FedMPQ, literal",
    "ablation-1-lasso": "(1) Lasso",
    "ablation-2-pruning": "(2) MSB pruning",
    "ablation-3-both": "(3) both",
    "ablation-4-policy": "(4) pruning + Alg. 2",
    "ablation-5-all": "(5) all",
}
ALPHAS = (0.1, 0.5, 1.0)
CLIENTS = (10, 20, 40)
LAMBDAS = (0.1, 0.01, 0.001)
EPSILONS = (0.01, 0.02, 0.03, 0.04, 0.05)

#: Accuracy by (data, system), one value for each of ALPHAS.
TABLE1: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "fedavg"): (60.3, 77.5, 82.1),
    ("cifar10", "fedpaq"): (56.3, 77.0, 81.2),
    ("cifar10", "uveqfed"): (56.8, 76.7, 81.5),
    ("cifar10", "fpq8"): (54.5, 68.4, 70.8),
    ("cifar10", "aqfl"): (44.3, 58.0, 62.1),
    ("cifar10", "fedmpq"): (49.1, 67.1, 69.3),
    ("cifar100", "fedavg"): (40.3, 47.0, 49.6),
    ("cifar100", "fedpaq"): (39.7, 46.8, 48.4),
    ("cifar100", "uveqfed"): (38.6, 46.5, 48.8),
    ("cifar100", "fpq8"): (35.4, 41.3, 42.3),
    ("cifar100", "aqfl"): (23.8, 32.9, 36.1),
    ("cifar100", "fedmpq"): (31.7, 41.1, 43.6),
    ("tiny-imagenet", "fedavg"): (24.6, 35.1, 38.1),
    ("tiny-imagenet", "fedpaq"): (22.87, 34.6, 37.5),
    ("tiny-imagenet", "uveqfed"): (21.3, 34.3, 37.4),
    ("tiny-imagenet", "fpq8"): (23.8, 33.4, 35.6),
    ("tiny-imagenet", "aqfl"): (17.1, 23.5, 25.3),
    ("tiny-imagenet", "fedmpq"): (20.3, 27.0, 28.2),
}
#: Accuracy at alpha = 0.5 by (data, system), one value for each of CLIENTS.
TABLE2: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "fedavg"): (77.5, 68.1, 64.5),
    ("cifar10", "fedpaq"): (77.0, 61.5, 59.9),
    ("cifar10", "uveqfed"): (76.7, 66.4, 63.2),
    ("cifar10", "fpq8"): (68.4, 56.3, 48.4),
    ("cifar10", "aqfl"): (58.0, 49.7, 37.3),
    ("cifar10", "fedmpq"): (67.1, 56.8, 45.4),
    ("cifar100", "fedavg"): (47.0, 40.1, 35.0),
    ("cifar100", "fedpaq"): (46.8, 38.9, 33.1),
    ("cifar100", "uveqfed"): (46.5, 39.5, 34.1),
    ("cifar100", "fpq8"): (41.3, 36.2, 31.9),
    ("cifar100", "aqfl"): (32.9, 20.4, 13.9),
    ("cifar100", "fedmpq"): (41.1, 26.1, 19.9),
}
#: FedMPQ on CIFAR-10 at alpha = 0.5 by lambda, one value for each of EPSILONS.
TABLE3: dict[float, tuple[float, ...]] = {
    0.1: (64.1, 63.4, 65.9, 63.9, 64.8),
    0.01: (66.4, 68.0, 67.1, 64.7, 64.3),
    0.001: (67.1, 70.0, 65.5, 64.7, 64.4),
}
#: Ablation at alpha = 0.5: (CIFAR-10, CIFAR-100).
TABLE4: dict[str, tuple[float, float]] = {
    "aqfl": (58.0, 32.9),
    "ablation-1-lasso": (56.8, 32.6),
    "ablation-2-pruning": (55.1, 28.7),
    "ablation-3-both": (56.2, 31.8),
    "ablation-4-policy": (65.4, 40.1),
    "ablation-5-all": (67.1, 41.1),
}
