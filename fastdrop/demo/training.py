"""One training, its clock and its figures."""

import time
from dataclasses import dataclass, field

import numpy as np

from ..layers import Dropout
from ..rng import Rng
from .network import Adam, Network, NoDropout, NumpyDropout, softmax_cross_entropy

WAYS = {
    "no dropout": lambda p, seed: NoDropout(),
    "NumPy binomial": NumpyDropout,
    "fastdrop": lambda p, seed: Dropout(p, rng=Rng(seed)),
}
POINTS = 100  # of a learning curve


class Clocked:
    """A layer that adds up the seconds spent in it."""

    def __init__(self, layer):
        self.layer = layer
        self.seconds = 0.0

    def __call__(self, x, training=True):
        start = time.perf_counter()
        y = self.layer(x, training)
        self.seconds += time.perf_counter() - start
        return y

    def backward(self, dy):
        start = time.perf_counter()
        dx = self.layer.backward(dy)
        self.seconds += time.perf_counter() - start
        return dx


@dataclass
class Score:
    """Of a set of data, with dropout off; the loss without the L2 penalty."""

    accuracy: float
    loss: float


@dataclass
class Training:
    """One network on one problem: how it went and what it took."""

    problem: object
    way: str
    network: Network
    epochs: list = field(default_factory=list)  # where the curves have their points
    train: list = field(default_factory=list)  # a Score for each
    val: list = field(default_factory=list)
    epoch_seconds: float = 0.0  # forward, backward and update, without the scoring
    dropout_seconds: float = 0.0  # of these, an epoch's dropout: forward and backward


def score(network, x, labels):
    logits = network(x)
    return Score(float((logits.argmax(axis=1) == labels).mean()), softmax_cross_entropy(logits, labels)[0])


def train(problem, way, epochs, seed, progress=lambda epoch, training: None):
    """Train one network.

    Parameters
    ----------
    problem : Problem
    way : str
        A key of `WAYS`. Weights and batches are the same for all of them.
    epochs : int
    seed : int
    progress : callable
        Told (epoch, training) after each epoch.

    Returns
    -------
    Training
    """
    rng = np.random.default_rng([seed, 1])
    dropout = Clocked(WAYS[way](problem.p, seed))
    network = Network(problem.x.shape[1], problem.hidden, problem.classes, dropout, rng, l2=problem.l2)
    adam = Adam(network.parameters(), problem.lr, problem.decay)
    training = Training(problem, way, network)
    marks = set(np.linspace(0, epochs, min(POINTS, epochs) + 1).astype(int).tolist())

    def mark(epoch):
        training.epochs.append(epoch)
        training.train.append(score(network, problem.x, problem.labels))
        training.val.append(score(network, problem.x_val, problem.labels_val))

    mark(0)
    spent = 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        order = rng.permutation(len(problem.x))
        for at in range(0, len(order), problem.batch):
            rows = order[at : at + problem.batch]
            _, dlogits = softmax_cross_entropy(network(problem.x[rows], training=True), problem.labels[rows])
            network.backward(dlogits)
            adam.step(network.gradients())
        spent += time.perf_counter() - start
        if epoch in marks:
            before = dropout.seconds
            mark(epoch)
            dropout.seconds = before
        progress(epoch, training)
    training.epoch_seconds = spent / epochs
    training.dropout_seconds = dropout.seconds / epochs
    return training
