"""R-Drop against plain dropout, in a network written in NumPy, on handwritten digits.

    python examples/r_drop_digits.py

R-Drop (arXiv:2106.14448) puts every example through the network twice, with two masks, and adds alpha times the
divergence of the two answers to the loss. alpha = 0, two passes alone, is shown as well and gains nothing: what
helps is the divergence. With 200 labelled digits there is something to gain. Prints a table, draws r_drop_digits.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import fastdrop as fd

LABELLED, HIDDEN, P, EPOCHS, RATE, BATCH, SEEDS = 200, 256, 0.5, 120, 0.1, 20, range(6)
WAYS = {"plain dropout": None, "two passes, alpha = 0": 0.0, "R-Drop, alpha = 1": 1.0, "R-Drop, alpha = 4": 4.0}

x, labels = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)


class Network:
    """64 inputs -> 256 -> dropout -> 10 logits, ReLU between."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.w1 = (rng.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64)).astype(np.float32)
        self.w2 = (rng.standard_normal((HIDDEN, 10)) * np.sqrt(1 / HIDDEN)).astype(np.float32)
        self.b1, self.b2 = np.zeros(HIDDEN, np.float32), np.zeros(10, np.float32)
        self.rng = fd.Rng(seed)

    def hidden(self, x):
        return np.maximum(x @ self.w1 + self.b1, 0)

    def __call__(self, x):
        return self.hidden(x) @ self.w2 + self.b2

    def learn(self, x, labels, alpha):
        """One step of gradient descent; alpha None: plain dropout."""
        h = self.hidden(x)
        if alpha is None:
            dropped, mask = fd.dropout(h, P, rng=self.rng)
            _, dlogits = fd.cross_entropy(dropped @ self.w2 + self.b2, labels)
        else:
            dropped, mask = fd.r_drop_pair(h, P, rng=self.rng)  # [2, rows, HIDDEN]
            a, b = dropped @ self.w2 + self.b2
            loss = fd.r_drop(a, b, labels, alpha=alpha)
            dlogits = np.stack([loss.da, loss.db])
        rows, drows = dropped.reshape(-1, HIDDEN), dlogits.reshape(-1, 10)
        dh = mask.backward(dlogits @ self.w2.T, x_shape=h.shape) * (h > 0)
        self.w2 -= RATE * (rows.T @ drows)
        self.b2 -= RATE * drows.sum(axis=0)
        self.w1 -= RATE * (x.T @ dh)
        self.b1 -= RATE * dh.sum(axis=0)


def train(alpha, seed):
    """Accuracy and loss on unseen digits after each epoch."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(labels))
    mine, unseen = order[:LABELLED], order[LABELLED:]
    network, scores = Network(seed), []
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(mine), LABELLED // BATCH):
            network.learn(x[rows], labels[rows], alpha)
        logits = network(x[unseen])
        scores.append(((logits.argmax(axis=1) == labels[unseen]).mean(), fd.cross_entropy(logits, labels[unseen])[0]))
    return np.array(scores).T


curves = {way: np.array([train(alpha, seed) for seed in SEEDS]) for way, alpha in WAYS.items()}  # [seed, score, epoch]

print(f"{LABELLED} labelled digits, {EPOCHS} epochs, {len(SEEDS)} seeds; mean ± standard error\n")
print("                         unseen digits right   loss on them")
plain = curves["plain dropout"][:, :, -1]
for way, scores in curves.items():
    right, loss = scores[:, 0, -1], scores[:, 1, -1]
    print(
        f"{way:22}   {right.mean():10.2%} ± {right.std() / len(SEEDS) ** 0.5:.2%}"
        f"   {loss.mean():7.4f} ± {loss.std() / len(SEEDS) ** 0.5:.4f}"
    )
best = curves["R-Drop, alpha = 4"][:, :, -1] - plain
print(
    f"\nR-Drop, alpha = 4, against plain dropout, seed by seed: {best[:, 0].mean():+.2%} right (more in "
    f"{(best[:, 0] > 0).sum()} of {len(SEEDS)}), loss {best[:, 1].mean():+.4f} (less in {(best[:, 1] < 0).sum()})"
)

figure, (right, loss) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (way, scores), color in zip(curves.items(), ["#777777", "#9ecae1", "#4292c6", "#08306b"], strict=True):
    for axis, score in ((right, scores[:, 0]), (loss, scores[:, 1])):
        axis.plot(np.arange(1, EPOCHS + 1), score.mean(axis=0), color=color, label=way)
right.set(ylim=(0.85, None), xlabel="epochs", ylabel="share of unseen digits right")
loss.set(ylim=(0.15, 0.5), xlabel="epochs", ylabel="cross-entropy on unseen digits")
right.legend(loc="lower right")
for axis in (right, loss):
    axis.grid(alpha=0.3)
figure.suptitle(f"R-Drop and plain dropout, {LABELLED} labelled digits")
figure.savefig("r_drop_digits.png", dpi=120)
print("wrote r_drop_digits.png")
