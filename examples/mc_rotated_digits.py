"""Does a network know when it does not know?  Handwritten digits, turned step by step, through Monte Carlo dropout.

    python examples/mc_rotated_digits.py

A network learns scikit-learn's digits as they are, then is asked about unseen ones turned by 0 to 180 degrees. The
entropy of its answers rises steeply over the first 30 degrees, and stays above that of upright digits; but it is no
alarm that never fails: lying digits (90 degrees) look to it like others that it knows, and it is wrong and rather sure.
Prints a table and draws mc_rotated_digits.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import fastdrop as fd
from fastdrop.layers import Dropout

HIDDEN, P, EPOCHS, RATE, BATCH = 128, 0.5, 40, 0.2, 50
DECAY = 2e-3  # of the weights, a part of what makes dropout an approximate posterior (Gal and Ghahramani, 2016)
ANGLES = range(0, 181, 15)
SAMPLES = 50
SHOWN = 4, 7, 2  # digits whose own curves are drawn

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = (images[order] / 16).astype(np.float32).reshape(-1, 8, 8), labels[order]
train, test = slice(0, 1200), slice(1200, None)


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Network:
    """64 inputs -> 128 -> 128 -> 10 probabilities, with ReLU and dropout."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        sizes = [(64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10)]
        self.w = [(rng.standard_normal(size) * np.sqrt(2 / size[0])).astype(np.float32) for size in sizes]
        self.b = [np.zeros(size[1], np.float32) for size in sizes]
        masks = fd.Rng(seed)
        self.dropout = [Dropout(P, rng=masks), Dropout(P, rng=masks)]

    def __call__(self, x, training=False):
        """``training``: a bool, or the sample that mc_dropout hands to its ``predict``."""
        self.inputs = [x]
        for w, b, dropout in zip(self.w, self.b, self.dropout, strict=False):
            x = dropout(np.maximum(x @ w + b, 0), training)
            self.inputs.append(x)
        return softmax(x @ self.w[-1] + self.b[-1])

    def learn(self, x, labels):
        """One step of gradient descent on the cross-entropy."""
        d = self(x, training=True)
        d[np.arange(len(labels)), labels] -= 1
        d /= len(labels)
        for i in (2, 1, 0):
            dw, db = self.inputs[i].T @ d, d.sum(axis=0)
            if i:
                d = self.dropout[i - 1].backward(d @ self.w[i].T) * (self.inputs[i] > 0)
            self.w[i] -= RATE * (dw + DECAY * self.w[i])
            self.b[i] -= RATE * db


network = Network(seed=0)
shuffle = np.random.default_rng(1)
flat = images[train].reshape(-1, 64)
for _ in range(EPOCHS):
    for rows in np.array_split(shuffle.permutation(len(flat)), len(flat) // BATCH):
        network.learn(flat[rows], labels[train][rows])


def turned(angle):
    return rotate(images[test], angle, axes=(2, 1), reshape=False, order=1).clip(0, 1)


table = []
for angle in ANGLES:
    result = fd.mc_dropout(network, turned(angle).reshape(-1, 64), SAMPLES, rng=0)  # rng=0: the same 50 networks
    right = result.mean.argmax(axis=1) == labels[test]
    table.append((angle, right.mean(), result.mean.max(axis=1).mean(), result.entropy, result.mutual_information))

print(f"{len(images[test])} unseen digits, {SAMPLES} samples; entropies in nats (ln 10 = {np.log(10):.2f})\n")
print("turned by   accuracy   confidence   entropy   of which the samples' disagreement")
for angle, right, confidence, entropy, information in table:
    print(f"{angle:6}°    {right:8.1%}   {confidence:8.1%}   {entropy.mean():9.3f}   {information.mean():.3f}")

figure, axes = plt.subplot_mosaic(
    [["curve"] * len(ANGLES), *[[f"{row} {a}" for a in ANGLES] for row in range(len(SHOWN))]],
    figsize=(10, 6.6),
    height_ratios=[3.6] + [1] * len(SHOWN),
    layout="constrained",
)
curve = axes["curve"]
curve.plot(ANGLES, [row[3].mean() for row in table], "o-", color="#1b6ca8", label="entropy of the mean (nats)")
curve.plot(ANGLES, [row[4].mean() for row in table], "o-", color="#e07a1f", label="mutual information (nats)")
curve.plot(ANGLES, [row[1] for row in table], "s--", color="#555555", label="accuracy")
curve.set(xlim=(-7, 187), ylim=(0, 1.45), xticks=list(ANGLES), xlabel="degrees the digits are turned by")
curve.set_title("Monte Carlo dropout on turned digits: unsure from the first degrees on, surer of lying ones")
curve.legend(loc="upper center", ncols=3)
curve.grid(alpha=0.3)
for row, digit in enumerate(SHOWN):
    one = int(np.flatnonzero(labels[test] == digit)[0])
    for (angle, _, _, entropy, _), image in zip(table, (turned(a)[one] for a in ANGLES), strict=True):
        axis = axes[f"{row} {angle}"]
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axis.set_xlabel(f"{entropy[one]:.2f}", fontsize=9)
        axis.set(xticks=[], yticks=[])
axes[f"{len(SHOWN) - 1} {ANGLES[0]}"].set_ylabel("below:\nits entropy", fontsize=8)
figure.savefig("mc_rotated_digits.png", dpi=120)
print("\nwrote mc_rotated_digits.png")
