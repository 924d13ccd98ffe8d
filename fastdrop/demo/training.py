"""The trainings of one problem, side by side: the loop, the clock, the figures.

The networks take turns, an epoch each, so that whatever else the machine does falls on all of them alike; times are the
medians of all epochs.  One after the other, each would have had its own minute, good or bad.
"""

import time
from dataclasses import dataclass

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
    """A layer that notes the seconds spent in it."""

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


def score(network, x, labels):
    logits = network(x)
    return Score(float((logits.argmax(axis=1) == labels).mean()), softmax_cross_entropy(logits, labels)[0])


class Training:
    """One network on one problem: how it goes and what it takes.

    Attributes
    ----------
    problem, way, network
    epochs : list of int
        Where the learning curves have their points.
    train, val : list of Score
        The curves.
    epoch_seconds : list of float
        Of each epoch: forward, backward and update, without the scoring.
    dropout_seconds : list of float
        Of each epoch's dropout alone, forward and backward.
    """

    def __init__(self, problem, way, seed):
        self.problem, self.way = problem, way
        self.rng = np.random.default_rng([seed, 1])  # weights and batches: the same for each way
        self.dropout = Clocked(WAYS[way](problem.p, seed))
        inputs = problem.x.shape[1]
        self.network = Network(inputs, problem.hidden, problem.classes, self.dropout, self.rng, l2=problem.l2)
        self.adam = Adam(self.network.parameters(), problem.lr, problem.decay)
        self.epochs, self.train, self.val = [], [], []
        self.epoch_seconds, self.dropout_seconds = [], []
        self.score()

    def epoch(self):
        """Train on all the data once."""
        x, labels, batch = self.problem.x, self.problem.labels, self.problem.batch
        self.dropout.seconds = 0.0
        start = time.perf_counter()
        order = self.rng.permutation(len(x))
        for at in range(0, len(x), batch):
            rows = order[at : at + batch]
            _, dlogits = softmax_cross_entropy(self.network(x[rows], training=True), labels[rows])
            self.network.backward(dlogits)
            self.adam.step(self.network.gradients())
        self.epoch_seconds.append(time.perf_counter() - start)
        self.dropout_seconds.append(self.dropout.seconds)

    def score(self):
        """Add a point to the learning curves."""
        self.epochs.append(len(self.epoch_seconds))
        self.train.append(score(self.network, self.problem.x, self.problem.labels))
        self.val.append(score(self.network, self.problem.x_val, self.problem.labels_val))


def train(problem, epochs, seed, progress=lambda epoch, trainings: None, ways=tuple(WAYS)):
    """Train a network in each way.

    Parameters
    ----------
    problem : Problem
    epochs : int
    seed : int
        Of weights, batches and masks.
    progress : callable
        Told (epoch, trainings) after each epoch.
    ways : sequence of str
        Keys of `WAYS`.

    Returns
    -------
    list of Training
    """
    trainings = [Training(problem, way, seed) for way in ways]
    points = set(np.linspace(0, epochs, min(POINTS, epochs) + 1).astype(int).tolist())
    for epoch in range(1, epochs + 1):
        for training in trainings:
            training.epoch()
            if epoch in points:
                training.score()
        progress(epoch, trainings)
    return trainings
