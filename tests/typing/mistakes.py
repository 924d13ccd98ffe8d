"""Mistakes that users make: a type checker finds each line that is marked, and `test_typing.py` that it raises.

``# mistake`` is found by pyright and by mypy, ``# mistake: pyright`` by that one alone.
"""

# pyright: strict
# pyright: reportUnusedExpression=false

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import fastdrop as fd
from fastdrop.inference import Sample
from fastdrop.layers import Dropout, MultiSampleDropout

x: NDArray[np.float32] = np.ones((2, 3), np.float32)
W: NDArray[np.float32] = np.ones((3, 2), np.float32)
image: NDArray[np.uint8] = np.zeros((2, 3), np.uint8)
labels: NDArray[np.int64] = np.array([0, 1])
rng = fd.Rng(0)
mask = fd.mask((2, 3), 0.5, rng=0)
layer = Dropout(0.5, rng=0)
head = MultiSampleDropout(W, None, rng=0)


def predict(x: NDArray[np.float32], sample: Sample) -> NDArray[np.float32]:
    return sample.dropout(x)


# what is dropped out
fd.dropout(image)  # mistake
fd.dropout(labels)  # mistake
fd.dropout(x > 0)  # mistake
fd.dropout(x * 1j)  # mistake
fd.dropout(None)  # mistake
fd.dropout("x")  # mistake
fd.dropout(object())  # mistake
fd.dropout(["a", "b"])  # mistake
fd.dropout({1.0, 2.0})  # mistake
fd.dropout()  # mistake
fd.relu_dropout(image)  # mistake
fd.gelu_dropout(labels)  # mistake
fd.dropout_add(x)  # mistake
fd.dropout_add(x, None)  # mistake
fd.dropout_add(x, image)  # mistake
fd.softmax_dropout(image)  # mistake
fd.multi_sample_dropout(image, 0.5, 3)  # mistake
fd.max_norm_(image, 3.0)  # mistake
mask.apply(image)  # mistake
layer(image)  # mistake

# names and values of arguments
fd.dropout(x, rate=0.5)  # mistake
fd.dropout(x, keep_prob=0.5)  # mistake
fd.dropout(x, seed=0)  # mistake
fd.dropout(x, inplace=True)  # mistake
fd.dropout(x, noise_shape=(2, 1))  # mistake
fd.dropout(x, 0.5, 0)  # mistake
fd.relu_dropout(x, random_state=0)  # mistake
fd.softmax_dropout(x, dim=-1)  # mistake
fd.cross_entropy(x, labels, ignore_label=-1)  # mistake
fd.mc_dropout(predict, x, num_samples=3)  # mistake
fd.mask((2, 3), rate=0.5)  # mistake
fd.mask((2, 3))  # mistake
fd.Rng(random_state=0)  # mistake
fd.set_num_threads(threads=2)  # mistake
Dropout(rate=0.5)  # mistake
Dropout()  # mistake
fd.dropout(x, "0.5")  # mistake
fd.dropout(x, None)  # mistake
fd.dropout(x, mask)  # mistake
fd.mask((2, 3), "0.5")  # mistake
layer.p = None  # mistake
layer.p = "0.5"  # mistake
fd.dropout(x, training="eval")  # mistake
fd.dropout(x, training=None)  # mistake
layer(x, "eval")  # mistake
head(x, "eval")  # mistake
fd.dropout(x, rng="0")  # mistake
fd.dropout(x, rng=np.random)  # mistake
fd.dropout(x, rng=np.random.RandomState(0))  # mistake
fd.dropout(x, rng=0.5)  # mistake
Dropout(0.5, rng="0")  # mistake
fd.Rng(0.5)  # mistake
fd.Rng("0")  # mistake
fd.dropout(x, mask=mask.keep())  # mistake
fd.dropout(x, mask=labels)  # mistake
fd.dropout(x, mask_shape=(2, 0.5))  # mistake
fd.dropout(x, out=True)  # mistake
fd.dropout(x, out=(2, 3))  # mistake
fd.dropout(x, out=image)  # mistake
fd.dropout_backward(mask, x)  # mistake
fd.dropout_backward(x)  # mistake
fd.dropout_backward(x, x)  # mistake
fd.relu_dropout_backward(x, mask, x)  # mistake
fd.gelu_dropout_backward(x, mask)  # mistake
fd.softmax_dropout_backward(x, x, mask)  # mistake
mask.backward(x, x_shape=2.0)  # mistake
fd.mask(x, 0.5)  # mistake: pyright
fd.mask(2.5, 0.5)  # mistake
fd.Mask.from_keep(x, 0.5)  # mistake
fd.Mask.from_keep(labels, 0.5)  # mistake
fd.Mask((2, 3), 0.5)  # mistake
rng.mask((2, 3), "0.5")  # mistake
rng.spawn(2.0)  # mistake
fd.multi_sample_dropout(x, 0.5)  # mistake
fd.multi_sample_dropout(x, 0.5, 3.0)  # mistake
fd.multi_sample_linear(x, W, None, 0.5, 3, average="mean")  # mistake
MultiSampleDropout(W, None, average="mean")  # mistake
fd.max_norm_(x, "1")  # mistake
fd.max_norm_(x)  # mistake
fd.kl_div(x)  # mistake
fd.kl_div(x, x, reduction="avg")  # mistake
fd.kl_div(x, x, out=x)  # mistake
fd.symmetric_kl(x, x, temperature="2")  # mistake
fd.js_div(x, x, pad_mask=x)  # mistake
fd.cross_entropy(x, "01")  # mistake
fd.cross_entropy(x, labels, label_smoothing=None)  # mistake
fd.cross_entropy(x, labels, ignore_index=0.5)  # mistake
fd.r_drop(x, x, labels)  # mistake
fd.r_drop(x, x, labels, 1.0)  # mistake
fd.mc_dropout(x, predict, 3)  # mistake
fd.mc_dropout(lambda x: x, x, 3)  # mistake
fd.mc_dropout(predict, x, 3.0)  # mistake
fd.use_backend("C")  # mistake
fd.use_backend(None)  # mistake
fd.set_num_threads("2")  # mistake
fd.set_buffer_limit(0.5)  # mistake

# results
fd.dropout(x).mean()  # mistake
fd.dropout(x) * 2.0  # mistake
fd.relu_dropout(x).sum()  # mistake
fd.r_drop(x, x, labels, alpha=1.0).dx  # mistake
fd.r_drop(x, x, labels, alpha=1.0).loss.backward()  # mistake
y, mask_, more = fd.dropout(x)  # mistake
da, db = fd.kl_div(x, x)  # mistake
layer.forward(x)  # mistake
layer.train()  # mistake
layer.mask = mask  # mistake
rng.seed = 1  # mistake

# masks in expressions
mask & mask  # mistake
mask | True  # mistake
1 + mask  # mistake
mask - 1  # mistake
mask * mask  # mistake
mask * "x"  # mistake
~mask  # mistake
-mask  # mistake
abs(mask)  # mistake
float(mask)  # mistake
int(mask)  # mistake
mask > 0  # mistake
0 in mask  # mistake
mask[None]  # mistake
mask[[0, 1]]  # mistake
mask[x > 0]  # mistake: pyright
mask[mask]  # mistake
mask[::2]  # mistake
mask[0.5]  # mistake
mask.sum()  # mistake
mask.T  # mistake
mask.astype(np.float32)  # mistake
mask.copy()  # mistake
mask.shape = (3, 2)  # mistake
