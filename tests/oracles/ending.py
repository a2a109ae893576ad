"""The step of the final norm's gains that costs least, from its definition: every token of the vocabulary is weighed.

Nothing is drawn and nothing is split into chunks. Steps are relative changes of gains, and everything is float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def predictions(
    states: Floats,  # (tokens, hidden)
    head: Floats,  # (vocabulary, hidden)
) -> Floats:  # (tokens, vocabulary)
    logits = states @ head.T
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(chances / chances.sum(1, keepdims=True))


def mean_log_probability(ends: Floats, head: Floats, terminator: int) -> float:
    return float(np.log(predictions(ends, head)[:, terminator]).mean())


def gradient(ends: Floats, head: Floats, terminator: int) -> Floats:  # (hidden,)
    """By central differences, one gain after the other."""
    slopes, step = np.zeros(ends.shape[1]), 1e-5
    for gain in range(len(slopes)):
        change = np.zeros(len(slopes))
        change[gain] = step
        up, down = (mean_log_probability(ends * (1 + sign * change), head, terminator) for sign in (1, -1))
        slopes[gain] = (up - down) / (2 * step)
    return slopes


def fisher(others: Floats, head: Floats) -> Floats:  # (hidden, hidden)
    """Of every state and every token that may follow, weighed by how likely it is."""
    total = np.zeros((others.shape[1], others.shape[1]))
    for state, chances in zip(others, predictions(others, head), strict=True):
        mean = np.zeros(len(state))
        for chance, row in zip(chances, head, strict=True):
            mean += chance * row
        for chance, row in zip(chances, head, strict=True):
            score = state * (row - mean)
            total += chance * np.outer(score, score)
    return total / len(others)


def natural(
    slopes: Floats,  # (hidden,)
    information: Floats,  # (hidden, hidden)
    damping: float,
) -> Floats:  # (hidden,)
    """The direction of least cost for what it gains, by coordinate descent on cost / 2 - gain.

    Args:
        damping: share of the information's mean diagonal that is added to it.
    """
    cost = information + damping * information.diagonal().mean() * np.eye(len(slopes))
    direction = np.zeros(len(slopes))
    for _ in range(20_000):
        last = direction.copy()
        for gain in range(len(slopes)):
            direction[gain] += (slopes[gain] - cost[gain] @ direction) / cost[gain, gain]
        if np.abs(direction - last).max() < 1e-12 * np.abs(direction).max():
            return direction
    raise AssertionError("coordinate descent did not come to rest")


def step_to(
    target: float,  # nats
    direction: Floats,  # (hidden,)
    ends: Floats,  # (ends, hidden)
    head: Floats,  # (vocabulary, hidden)
    terminator: int,
) -> Floats:  # (hidden,)
    """The shortest step along a direction that takes the mean to the target, by a walk that turns at every crossing."""
    direction = direction / np.abs(direction).max()
    length, stride = 0.0, 1e-3
    if mean_log_probability(ends, head, terminator) > target:
        stride = -stride
    while abs(stride) > 1e-13:
        ahead = mean_log_probability(ends * (1 + (length + stride) * direction), head, terminator)
        if (ahead < target) == (stride > 0):
            length += stride
        else:
            stride /= 4
        if abs(length) > 1:
            raise AssertionError("the target is out of reach")
    return length * direction


def divergence(
    others: Floats,  # (tokens, hidden)
    step: Floats,  # (hidden,)
    head: Floats,  # (vocabulary, hidden)
) -> float:
    """Mean KL divergence of the old predictions from the new, in nats."""
    old, new = predictions(others, head), predictions(others * (1 + step), head)
    return float((old * np.log(old / new)).sum(1).mean())
