"""The network of a from-scratch NumPy course: dense, ReLU, dropout, dense, softmax; Adam.

The second dense layer reads what dropout wrote.  (A widely copied listing feeds it the activation from before dropout,
which trains the first layer through masks that the loss never saw.)

Everything is in one dtype, float32 for training: Adam's steps and dropout's noise are larger by orders of magnitude
than its rounding, and half the bytes are half the time for code that is bound by memory. The gradient test runs it in
float64, where central differences have digits to spare.
"""

import numpy as np


class Dense:
    """x @ w + b, with the penalty l2 * (sum w**2 + sum b**2) added to its gradients."""

    def __init__(self, inputs, outputs, rng, dtype, l2=0.0):
        self.w = (0.01 * rng.standard_normal((inputs, outputs))).astype(dtype)
        self.b = np.zeros(outputs, dtype)
        self.l2 = l2

    def __call__(self, x):
        self.x = x
        return x @ self.w + self.b

    def backward(self, dy):
        self.dw = self.x.T @ dy + 2 * self.l2 * self.w
        self.db = dy.sum(axis=0) + 2 * self.l2 * self.b
        return dy @ self.w.T


class NoDropout:
    """What a network without dropout has in its place."""

    def __call__(self, x, training=True):
        return x

    def backward(self, dy):
        return dy


class NumpyDropout:
    """Dropout as from-scratch code writes it.

    The Generator's binomial, since it is a little faster than ``np.random.binomial``. The mask comes out as float64;
    without the `astype`, a twentieth of its cost, all that follows in the network would be float64 too.
    """

    def __init__(self, p, seed):
        self.keep = 1 - p
        self.rng = np.random.default_rng(seed)

    def __call__(self, x, training=True):
        if not training:
            return x
        self.mask = (self.rng.binomial(1, self.keep, x.shape) / self.keep).astype(x.dtype)
        return x * self.mask

    def backward(self, dy):
        return dy * self.mask


def softmax_cross_entropy(logits, labels):
    """Mean loss and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    loss = float((np.log(total[:, 0]) - shifted[rows, labels]).mean())
    dlogits = exp / total
    dlogits[rows, labels] -= 1
    return loss, dlogits / len(labels)


class Network:
    """inputs -> dense -> ReLU -> dropout -> dense -> logits."""

    def __init__(self, inputs, hidden, classes, dropout, rng, dtype=np.float32, l2=0.0):
        self.first = Dense(inputs, hidden, rng, dtype, l2)
        self.dropout = dropout
        self.second = Dense(hidden, classes, rng, dtype)

    def __call__(self, x, training=False):
        self.hidden = np.maximum(self.first(x), 0)
        return self.second(self.dropout(self.hidden, training))

    def backward(self, dlogits):
        dhidden = self.dropout.backward(self.second.backward(dlogits))
        return self.first.backward(dhidden * (self.hidden > 0))

    def parameters(self):
        return [self.first.w, self.first.b, self.second.w, self.second.b]

    def gradients(self):
        return [self.first.dw, self.first.db, self.second.dw, self.second.db]


class Adam:
    """Adam with the learning rate lr / (1 + decay * step); changes the parameters in place."""

    def __init__(self, parameters, lr, decay=0.0, beta1=0.9, beta2=0.999, epsilon=1e-7):
        self.parameters = parameters
        self.lr, self.decay, self.beta1, self.beta2, self.epsilon = lr, decay, beta1, beta2, epsilon
        self.m = [np.zeros_like(w) for w in parameters]
        self.v = [np.zeros_like(w) for w in parameters]
        self.steps = 0

    def step(self, gradients):
        lr = self.lr / (1 + self.decay * self.steps)
        self.steps += 1
        unbias1, unbias2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        for w, dw, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            m += (1 - self.beta1) * (dw - m)
            v += (1 - self.beta2) * (dw * dw - v)
            w -= lr * (m / unbias1) / (np.sqrt(v / unbias2) + self.epsilon)
