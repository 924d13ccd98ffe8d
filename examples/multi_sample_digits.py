"""Does multi-sample dropout train in fewer epochs at little extra time, as its paper says?  Handwritten digits.

    python examples/multi_sample_digits.py

Inoue (arXiv:1905.09788) drops the input of the last layer in S ways at once and averages the S losses. This trains the
same network with S = 1, 2, 4 and 8 on scikit-learn's digits, three times each, prints the epochs to a training loss
and the time of an epoch, and draws multi_sample_digits.png. Here the claim does not hold: 1200 digits leave little to
be gained (S = 8 saves 4 % of the epochs), and in a network of three layers the last one is not little time.
"""

import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import fastdrop as fd
from fastdrop.layers import MultiSampleDropout

SAMPLES, SEEDS = (1, 2, 4, 8), range(3)
HIDDEN, P, EPOCHS, RATE, BATCH = 512, 0.5, 25, 0.1, 50
TARGET = 0.05  # training loss, dropout off

x, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, labels = (x[order] / 16).astype(np.float32), labels[order]
x_train, y_train, x_test, y_test = x[:1200], labels[:1200], x[1200:], labels[1200:]


def loss_and_gradient(logits, labels):
    """Mean cross-entropy over rows, and over samples where there are any: the mean of the samples' losses."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exp = np.exp(shifted)
    p = exp / exp.sum(axis=-1, keepdims=True)
    rows = np.prod(logits.shape[:-1])
    at = (..., np.arange(len(labels)), labels)
    loss = -np.log(p[at]).mean()
    p[at] -= 1
    return loss, p / np.float32(rows)


class Network:
    """64 inputs -> 512 -> 512 -> multi-sample dropout and the last layer; ReLU between."""

    def __init__(self, samples, seed):
        rng = np.random.default_rng(seed)
        sizes = [(64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10)]
        self.w = [(rng.standard_normal(size) * np.sqrt(2 / size[0])).astype(np.float32) for size in sizes]
        self.b = [np.zeros(size[1], np.float32) for size in sizes]
        self.head = MultiSampleDropout(self.w[2], self.b[2], P, samples, average="losses", rng=fd.Rng(seed))

    def __call__(self, x, training=False):
        self.inputs = [x]
        for w, b in zip(self.w[:2], self.b[:2], strict=True):
            self.inputs.append(np.maximum(self.inputs[-1] @ w + b, 0))
        return self.head(self.inputs[-1], training)

    def learn(self, x, labels):
        _, dlogits = loss_and_gradient(self(x, training=True), labels)
        d = self.head.backward(dlogits)
        self.step(2, self.head.dW, self.head.db)
        for i in (1, 0):
            d = d * (self.inputs[i + 1] > 0)
            dw, db = self.inputs[i].T @ d, d.sum(axis=0)
            d = d @ self.w[i].T
            self.step(i, dw, db)

    def step(self, i, dw, db):
        self.w[i] -= RATE * dw  # in place: the head's weights are these
        self.b[i] -= RATE * db


def train(samples, seed):
    """Training losses after each epoch, seconds of each, accuracy on the unseen digits at the end."""
    network = Network(samples, seed)
    shuffle = np.random.default_rng([seed, 1])
    losses, seconds = [], []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for rows in np.array_split(shuffle.permutation(len(x_train)), len(x_train) // BATCH):
            network.learn(x_train[rows], y_train[rows])
        seconds.append(time.perf_counter() - start)
        losses.append(loss_and_gradient(network(x_train), y_train)[0])
    return losses, seconds, (network(x_test).argmax(axis=1) == y_test).mean()


train(1, seed=99)  # warm up
curves, epoch_ms, accuracy = {}, {}, {}
runs = {samples: [] for samples in SAMPLES}
for seed in SEEDS:  # in turn, so that a busy machine is busy for all of them
    for samples in SAMPLES:
        runs[samples].append(train(samples, seed))
for samples, results in runs.items():
    curves[samples] = np.array([losses for losses, _, _ in results])
    epoch_ms[samples] = 1e3 * np.min([seconds for _, seconds, _ in results])  # the least disturbed
    accuracy[samples] = np.mean([right for _, _, right in results])


def epochs_to_target(curve):
    reached = np.flatnonzero(curve <= TARGET)
    return reached[0] + 1 if reached.size else np.nan


print(f"64 -> {HIDDEN} -> {HIDDEN} -> 10, p = {P}; {len(SEEDS)} trainings, {EPOCHS} epochs; losses with dropout off\n")
print(f" S   epochs to a loss of {TARGET}   ms an epoch   time to that loss   loss at the end   unseen digits right")
epochs = {samples: np.mean([epochs_to_target(curve) for curve in curves[samples]]) for samples in SAMPLES}
total = {samples: epochs[samples] * epoch_ms[samples] for samples in SAMPLES}
for s in SAMPLES:
    print(
        f"{s:2}   {epochs[s]:23.1f}   {epoch_ms[s]:11.1f}   {total[s]:14.0f} ms   {curves[s][:, -1].mean():15.4f}"
        f"   {accuracy[s]:19.1%}"
    )
fewer, slower = 1 - epochs[8] / epochs[1], epoch_ms[8] / epoch_ms[1] - 1
verdict = "holds" if fewer > 0.1 and total[8] < total[1] else "does not hold"
print(f"\nS = 8 saves {fewer:.0%} of the epochs; an epoch takes {slower:+.0%}. The paper's claim {verdict} here.")

figure, (by_epoch, by_time) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for samples, color in zip(SAMPLES, ["#9ecae1", "#4292c6", "#1b6ca8", "#08306b"], strict=True):
    mean = curves[samples].mean(axis=0)
    steps = np.arange(1, EPOCHS + 1)
    by_epoch.plot(steps, mean, color=color, label=f"S = {samples}")
    by_time.plot(steps * epoch_ms[samples] / 1e3, mean, color=color, label=f"S = {samples}")
for axis in (by_epoch, by_time):
    axis.axhline(TARGET, color="#999999", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
by_epoch.set(xlabel="epochs", ylabel="training loss, dropout off")
by_time.set(xlabel="seconds of training")
by_epoch.legend()
figure.suptitle("Multi-sample dropout on handwritten digits")
figure.savefig("multi_sample_digits.png", dpi=120)
print("wrote multi_sample_digits.png")
