"""What the demo learns: three spiral arms, and scikit-learn's bundled handwritten digits."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Problem:
    """Data split in two, and how a network is trained on it."""

    name: str
    x: np.ndarray
    labels: np.ndarray
    x_val: np.ndarray
    labels_val: np.ndarray
    hidden: int
    p: float
    l2: float
    lr: float
    decay: float
    batch: int
    epochs: int  # of a default run

    @property
    def classes(self):
        return int(self.labels.max()) + 1


def _split(x, labels, train, rng):
    """Shuffle; the first ``train`` for training, the others for validation."""
    order = rng.permutation(len(x))
    x, labels = x[order].astype(np.float32), labels[order]
    return x[:train], labels[:train], x[train:], labels[train:]


def spiral(seed, samples=2000, classes=3):
    """The spiral of from-scratch courses: arms of ``samples`` points each, half of all for training."""
    rng = np.random.default_rng(seed)
    r = np.tile(np.linspace(0, 1, samples), classes)
    labels = np.repeat(np.arange(classes), samples)
    t = np.concatenate([np.linspace(c * 4, (c + 1) * 4, samples) for c in range(classes)])
    t += 0.2 * rng.standard_normal(t.size)
    x = np.stack([r * np.sin(2.5 * t), r * np.cos(2.5 * t)], axis=1)
    data = _split(x, labels, len(x) // 2, rng)
    return Problem("spiral", *data, hidden=512, p=0.1, l2=5e-4, lr=0.05, decay=5e-5, batch=len(data[0]), epochs=500)


def digits(seed):
    """1797 scanned digits of 8 x 8 pixels (UCI), real data that come with scikit-learn; 1200 for training.

    Without the L2 penalty, so that dropout alone stands between 38 000 weights and 1200 images.
    """
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    data = _split(x / 16, labels, 1200, np.random.default_rng(seed))
    return Problem("digits", *data, hidden=512, p=0.5, l2=0.0, lr=3e-3, decay=5e-5, batch=100, epochs=100)


PROBLEMS = {"spiral": spiral, "digits": digits}
