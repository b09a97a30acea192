"""scikit-learn's handwritten digits: 1,797 images of 8x8, the data set that needs no download."""

from __future__ import annotations

import numpy as np

from fedmpq.data.dataset import Dataset, Split, stratified_choice

_TEST_IMAGES = 360


def read_digits() -> Dataset:
    """The digits with a fixed stratified split of 1,437 training and 360 test images, levels 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = np.asarray(bunch.images, dtype=np.uint16)
    images = ((levels * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
    labels = np.asarray(bunch.target, dtype=np.uint16)
    test = stratified_choice(labels, _TEST_IMAGES, seed=0)
    train = np.setdiff1d(np.arange(len(labels)), test)
    both = Split(images, labels)
    return Dataset.build("digits", [str(digit) for digit in range(10)], both.take(train), both.take(test))
