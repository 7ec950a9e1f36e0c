"""The costly operations of a Llama on NumPy instead of MLX, for training on a CPU.

The BLAS inside MLX's Linux wheel is the unoptimised reference one (3 to 6 GFLOP/s on one core) and its exponential is
not vectorised; NumPy's are fast. With them a training step of the tiny model takes less than a tenth of the time. The
model stays MLX's own, as does the optimizer; only who computes changes, forwards and backwards. Float32 only.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx_lm.models import llama
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@contextmanager
def host_operations() -> Iterator[None]:
    """While open, linear layers, tied output embeddings, Llama attention and its gate compute on NumPy.

    The attention knows only what training needs: a causal mask, no cache. Not for several threads at once: it replaces
    functions of the libraries.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(Linear, "__call__", _linear_call))
        stack.enter_context(patch.object(Embedding, "as_linear", _linear_call))
        stack.enter_context(patch.object(llama, "scaled_dot_product_attention", _attention_call))
        stack.enter_context(patch.object(llama, "swiglu", gated))
        yield


def _linear_call(layer: Module, inputs: mx.array) -> mx.array:
    return cast("mx.array", linear(inputs, layer.weight))


def _attention_call(
    queries: mx.array, keys: mx.array, values: mx.array, cache: None, scale: float, mask: object
) -> mx.array:
    if cache is not None or mask not in ("causal", None):
        raise ValueError("Host operations know causal attention without a cache only.")
    return cast("mx.array", causal_attention(queries * scale, keys, values))


@mx.custom_function
def linear(inputs: mx.array, weight: mx.array) -> mx.array:
    """`inputs @ weight.T`: inputs (..., in), weight (out, in), result (..., out)."""
    product = _rows(inputs) @ _host(weight).T
    return mx.array(product.reshape(*inputs.shape[:-1], -1))


@linear.vjp
def _linear_gradients(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    inputs, weight = primals
    slopes = _rows(cotangent)
    inputs_gradient = (slopes @ _host(weight)).reshape(inputs.shape)
    return mx.array(inputs_gradient), mx.array(slopes.T @ _rows(inputs))


@mx.custom_function
def causal_attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Attention of every position to itself and those before it.

    Queries (batch, heads, length, width), already scaled; keys and values (batch, key heads, length, width), where
    each key head serves heads ÷ key heads neighbouring heads. The result has the shape of the queries.
    """
    grouped, keys_host = _grouped(queries, keys.shape[1]), _shared(keys)
    return mx.array((_weights(grouped, keys_host) @ _shared(values)).reshape(queries.shape))


@causal_attention.vjp
def _attention_gradients(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    queries, keys, values = primals
    grouped, keys_host = _grouped(queries, keys.shape[1]), _shared(keys)
    weights = _weights(grouped, keys_host)
    slopes = _grouped(cotangent, keys.shape[1])
    weight_slopes = slopes @ _shared(values).swapaxes(-1, -2)
    score_slopes = weights * (weight_slopes - (weight_slopes * weights).sum(-1, keepdims=True))
    return (
        mx.array((score_slopes @ keys_host).reshape(queries.shape)),
        mx.array((score_slopes.swapaxes(-1, -2) @ grouped).sum(2)),
        mx.array((weights.swapaxes(-1, -2) @ slopes).sum(2)),
    )


@mx.custom_function
def gated(gate: mx.array, inputs: mx.array) -> mx.array:
    """`silu(gate) * inputs`, all of one shape."""
    slope = _host(gate)
    return mx.array(slope * _sigmoid(slope) * _host(inputs))


@gated.vjp
def _gated_gradients(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    gate, inputs, slopes = _host(primals[0]), _host(primals[1]), _host(cotangent)
    opened = _sigmoid(gate)
    silu = gate * opened
    return mx.array(slopes * inputs * (opened + silu * (1 - opened))), mx.array(slopes * silu)


@mx.custom_function
def mean_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """The mean of `-log softmax(logits)[target]` in nats: logits (..., classes), targets (...), result a scalar."""
    shifted = _rows(logits) - _rows(logits).max(-1, keepdims=True)
    chosen = shifted[np.arange(len(shifted)), _classes(targets)]
    return mx.array(np.mean(np.log(np.exp(shifted).sum(-1)) - chosen))


@mean_cross_entropy.vjp
def _cross_entropy_gradients(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    logits, targets = primals
    slopes = _softmax(_rows(logits).copy())
    slopes[np.arange(len(slopes)), _classes(targets)] -= 1
    slopes *= _host(cotangent) / len(slopes)
    return mx.array(slopes.reshape(logits.shape)), mx.zeros_like(targets)


def _sigmoid(values: Floats) -> Floats:
    scores = np.exp(-values)
    scores += 1
    return np.reciprocal(scores, out=scores)


def _weights(queries: Floats, keys: Floats) -> Floats:
    """The causal softmax of `queries @ keys.T`: (batch, key heads, heads ÷ key heads, length, length)."""
    scores: Floats = queries @ keys.swapaxes(-1, -2)
    length = scores.shape[-1]
    scores += np.triu(np.full((length, length), -1e9, np.float32), 1)
    return _softmax(scores)


def _softmax(scores: Floats) -> Floats:
    """The softmax over the last axis, computed in place."""
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores


def _host(array: mx.array) -> Floats:
    """The array's memory as NumPy sees it; evaluates what is still lazy."""
    view: Any = array
    return np.asarray(view)


def _classes(targets: mx.array) -> NDArray[np.intp]:
    """Class numbers of any shape as one flat index."""
    return _host(targets).reshape(-1).astype(np.intp)


def _rows(array: mx.array) -> Floats:
    """All but the last axis as one: (rows, columns)."""
    return _host(array).reshape(-1, array.shape[-1])


def _grouped(queries: mx.array, key_heads: int) -> Floats:
    """(batch, heads, length, width) → (batch, key heads, heads ÷ key heads, length, width)."""
    batch, heads, length, width = queries.shape
    return _host(queries).reshape(batch, key_heads, heads // key_heads, length, width)


def _shared(keys: mx.array) -> Floats:
    """(batch, key heads, length, width) → (batch, key heads, 1, length, width)."""
    return _host(keys)[:, :, None]
