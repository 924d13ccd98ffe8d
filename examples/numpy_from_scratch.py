"""fastdrop in a network that you wrote yourself in NumPy: one line of the dropout layer changes.

Run it with ``python examples/numpy_from_scratch.py``; it needs nothing but NumPy and fastdrop.
"""

import numpy as np

import fastdrop as fd

rng = fd.Rng(seed=0)


class LayerDropout:
    def __init__(self, rate):
        self.rate = rate

    def forward(self, inputs, training):
        if not training:
            self.output = inputs
            return
        # It was: self.mask = np.random.binomial(1, 1 - self.rate, inputs.shape) / (1 - self.rate)
        self.mask = fd.mask(inputs.shape, self.rate, rng=rng)
        self.output = inputs * self.mask

    def backward(self, dvalues):
        self.dinputs = dvalues * self.mask


class LayerDense:
    def __init__(self, n_inputs, n_neurons):
        self.weights = np.random.default_rng(n_inputs).normal(0, n_inputs**-0.5, (n_inputs, n_neurons))
        self.biases = np.zeros(n_neurons)

    def forward(self, inputs):
        self.inputs = inputs
        self.output = inputs @ self.weights + self.biases

    def backward(self, dvalues, rate=0.5):
        self.dinputs = dvalues @ self.weights.T
        self.weights -= rate * self.inputs.T @ dvalues
        self.biases -= rate * dvalues.sum(axis=0)


def two_rings(n):
    """Points of two noisy rings, one round the other; which ring each is of."""
    noise = np.random.default_rng(0)
    ring = np.arange(n) % 2
    radius = 0.5 + 0.5 * ring + 0.1 * noise.standard_normal(n)
    angle = noise.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), ring


def predict(inputs, training=False):
    dense1.forward(inputs)
    dropout.forward(np.maximum(dense1.output, 0), training)
    dense2.forward(dropout.output)
    exp = np.exp(dense2.output - dense2.output.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def accuracy():
    return (predict(x_test).argmax(axis=1) == y_test).mean()


points, ring = two_rings(1000)
x, y, x_test, y_test = points[:500], ring[:500], points[500:], ring[500:]
dense1, dropout, dense2 = LayerDense(2, 64), LayerDropout(0.2), LayerDense(64, 2)

print(f"accuracy before training: {accuracy():.3f}")
for _ in range(500):
    dvalues = predict(x, training=True)
    dvalues[np.arange(len(y)), y] -= 1
    dense2.backward(dvalues / len(y))
    dropout.backward(dense2.dinputs)
    dense1.backward(dropout.dinputs * (dense1.output > 0))
print(f"accuracy after training:  {accuracy():.3f}")
