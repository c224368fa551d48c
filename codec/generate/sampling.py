"""Which id is drawn: temperature, the k most probable ids, and those of a total probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def choose(logits: Tensor, draw: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """One index of each row of ``logits [n, N]`` by a number of [0, 1) each, ``draw [n]``: ``[n]`` int64."""
    if temperature == 0:
        return logits.argmax(1)
    logits = logits.double() / temperature
    if top_k is not None and top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, 1).values[:, -1:], -math.inf)
    p = logits.softmax(1)
    if top_p is not None and top_p < 1:
        ranked, which = p.sort(dim=1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(1) - ranked >= top_p, 0.0)  # the first stays
        p = torch.zeros_like(p).scatter(1, which, ranked)
    total = p.cumsum(1)
    index = (total <= draw[:, None] * total[:, -1:]).sum(1)
    return torch.where(index < p.shape[1], index, p.argmax(1))  # rounding may reach the whole
