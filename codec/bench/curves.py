"""Mean curves of rate and distortion, and how many percent of the bits one codec saves against another (BD-rate)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..metrics import picture
from .metrics import KEYS, bench_extra

METHOD = "akima"  # of the package `bjontegaard`: the interpolation of log rate over the metric
FEWEST = 4  # points of a curve, as in VCEG-M33
OVERLAP = 0.25  # of the shorter curve's range of the metric: with less, the figure would speak of one end only
# Higher is better in each: a BD-rate needs that.
BD_METRICS = {"psnr": "PSNR", "ms_ssim_db": "MS-SSIM", "ssimulacra2": "SSIMULACRA2"}


@dataclass(frozen=True)
class Curve:
    """One codec's mean rate and distortion.

    ``points``: a dict for each setting with at least "bpp" and one metric; a metric may be None.
    ``kind``: "ours", "peer" or "published".
    """

    name: str
    kind: str
    points: list[dict[str, Any]]

    def values(self, metric: str) -> list[tuple[float, float]]:
        """Pairs of bits per pixel and a finite metric."""
        found = [(p["bpp"], p.get(metric)) for p in self.points]
        return [(bpp, value) for bpp, value in found if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class BdRate:
    """``percent``: bits that the tested codec takes more than the other at the same metric, negative if fewer; None,
    with a ``reason``, where that cannot be said. ``low`` to ``high``: the range of the metric it is the mean over."""

    percent: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def mean_point(rows: Sequence[Mapping[str, Any]], setting: str) -> dict[str, Any]:
    """Means over pictures at one setting, the field's way: each of rate and metrics by itself.

    A metric that some pictures are too small for is averaged over the others, and None if there are none.
    MS-SSIM is put into dB after the mean, as the published points are.
    """
    point: dict[str, Any] = {"setting": setting, "pictures": len(rows)}
    point |= means(rows, ("bytes", "bpp", *KEYS, "encode_s", "decode_s"))
    point["ms_ssim_db"] = None if point["ms_ssim"] is None else picture.decibel(point["ms_ssim"])
    return point


def means(rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, float | None]:
    """The mean of each of ``keys`` over the rows that have it; None if none has."""
    found: dict[str, float | None] = {}
    for key in keys:
        values = [row[key] for row in rows if row[key] is not None]
        found[key] = float(np.mean(values)) if values else None
    return found


def group_by(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """Rows with equal values of ``keys`` together, in the order of their first ones; each group after these values."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [(dict(zip(keys, values, strict=True)), group) for values, group in groups.items()]


def rising(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs of rate and metric that no other pair beats in both, by rate: both then rise strictly."""
    best: list[tuple[float, float]] = []
    for bpp, value in sorted(values, key=lambda pair: (pair[0], -pair[1])):
        if not best or value > best[-1][1]:
            best.append((bpp, value))
    return best


def rate_at(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """The rate at which a codec reaches a value of the metric: the logarithm of its rate goes in straight lines between
    its settings, those of ``curve``, pairs of rate and metric in any order. None outside of them."""
    points = rising(curve)
    if not points or not points[0][1] <= value <= points[-1][1]:
        return None
    rates, values = np.array(points).T
    return float(np.exp(np.interp(value, values, np.log(rates))))


def bd_rate(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> BdRate:
    """Mean difference of two curves in rate at the same metric.

    Args:    anchor, test: pairs of rate and metric (higher is better), in any order. Settings that another setting of
             the same codec beats in rate and metric are left out.
    Returns: percent of the anchor's rate that ``test`` takes more, over the common range of the metric.
    Raises:  UsageError if the package `bjontegaard` is missing.
    Source:  Bjontegaard, VCEG-M33 (2001), with Akima interpolation (Herglotz et al., arXiv:2202.12565) in the package
             `bjontegaard`; we differ: nothing, but curves with little in common give no figure.
    """
    curves = [rising(anchor), rising(test)]
    for curve in curves:
        if len(curve) < FEWEST:
            return BdRate(None, reason=f"a curve has {len(curve)} rising points, {FEWEST} are needed")
    (rate_a, value_a), (rate_t, value_t) = (np.array(curve).T for curve in curves)
    low, high = float(max(value_a[0], value_t[0])), float(min(value_a[-1], value_t[-1]))
    shorter = float(min(value_a[-1] - value_a[0], value_t[-1] - value_t[0]))
    if high - low < OVERLAP * shorter:
        share = max(0.0, high - low) / shorter
        return BdRate(None, reason=f"the curves share {share:.0%} of the shorter one's range, {OVERLAP:.0%} are needed")
    with bench_extra():
        import bjontegaard
    percent = bjontegaard.bd_rate(
        rate_a, value_a, rate_t, value_t, method=METHOD, require_matching_points=False, min_overlap=0
    )
    return BdRate(float(percent), low, high)


def compare(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """BD-rate of each of our curves against every other codec's, for each metric that both have.

    Returns: dicts with "ours", "against", "kind", "metric" (a key of :data:`BD_METRICS`) and the fields of
             :class:`BdRate`.
    """
    found = []
    for ours in (curve for curve in curves if curve.kind == "ours"):
        for metric in BD_METRICS:
            test = ours.values(metric)
            for other in curves:
                anchor = other.values(metric)
                if other.kind == "ours" or not test or not anchor:
                    continue
                names = {"ours": ours.name, "against": other.name, "kind": other.kind, "metric": metric}
                found.append(names | asdict(bd_rate(anchor, test)))
    return found


def places(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our place among the published curves, for each of our curves and each metric.

    Returns: dicts with "ours", "metric", "place" (1 is the best), "of", "order" (the published curves with a BD-rate,
             those that beat ours the most first) and "left_out" (those without one, with the reason). A codec is ahead
             of ours if ours takes more bits over their common range, which differs from pair to pair.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in comparisons:
        if entry["kind"] == "published":
            groups.setdefault((entry["ours"], entry["metric"]), []).append(entry)
    result = []
    for (ours, metric), group in groups.items():
        known = sorted((e for e in group if e["percent"] is not None), key=lambda e: -e["percent"])
        order = [{key: e[key] for key in ("against", "percent", "low", "high")} for e in known]
        left_out = [{key: e[key] for key in ("against", "reason")} for e in group if e["percent"] is None]
        place = 1 + sum(e["percent"] > 0 for e in known)
        result.append(
            {"ours": ours, "metric": metric, "place": place, "of": len(known) + 1, "order": order, "left_out": left_out}
        )
    return result
