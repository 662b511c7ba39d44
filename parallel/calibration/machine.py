"""From what the ranks measured to the cluster that they are."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import parallel
from parallel.calibration.fit import (
    CollectivePoint,
    ProductPoint,
    fit_collectives,
    fit_products,
    mean_error,
)
from parallel.calibration.network import beside_computing
from parallel.calibration.overheads import (
    JointPoint,
    LayerPoint,
    StepPoint,
    WayPoint,
    fit_late,
    fit_layers,
    fit_steps,
    fit_ways,
    layer_error,
)
from parallel.calibration.points import rounded
from parallel.hardware.catalogue import read_cluster
from parallel.hardware.facts import Cluster, DeviceType, Link, Node
from parallel.hardware.probe import LOOPBACK, NETWORK
from parallel.precision import precision

Json = dict[str, Any]
_READ_ROWS = 16
"""A product of more rows computes more than it reads."""


def fit_cluster(name: str, measures: Sequence[Json]) -> tuple[Cluster, Json]:
    """The cluster of these ranks, and how far its figures lie from what was measured."""
    errors: Json = {}
    groups = [group for measure in measures[:1] for group in measure["collectives"]]
    numbers = sorted({m["node"] for m in measures})
    nodes = []
    # A job has one leader, and only that sees what a step takes: any host may be its.
    (steps,) = [m["steps"] for m in measures if m["steps"]] or [[]]
    (ways,) = [m["ways"] for m in measures if m["ways"]] or [[]]
    for number in numbers:
        own = [{**m, "steps": steps, "ways": ways} for m in measures if m["node"] == number]
        (base,) = read_cluster(own[0]["machine"], name, {}).nodes
        device, found = fit_device(base.devices[0], own)
        errors |= {key: max(value, errors.get(key, 0.0)) for key, value in found.items()}
        nodes.append(_joined(replace(base, devices=(device,) * len(own)), groups, errors))
    network = None
    if len(nodes) > 1:
        network = _fitted(NETWORK, groups, "network", None, errors)
        joint = [JointPoint(**p) for p in measures[0]["joint"]]
        network = beside_computing(network, joint, len(measures))
    return Cluster(name, tuple(nodes), network), errors


def fit_device(base: DeviceType, measures: Sequence[Json]) -> tuple[DeviceType, dict[str, float]]:
    """One device for equal ranks of a host: of each measurement their median. Returns the mean
    relative errors as well."""
    measured = [[ProductPoint(**p) for p in m["products"]] for m in measures]
    products = [
        replace(points[0], seconds=median(p.seconds for p in points))
        for points in zip(*measured, strict=True)
    ]
    layers = [_middle(points) for points in zip(*(_layers(m) for m in measures), strict=True)]
    overheads = fit_layers(layers)
    steps = [StepPoint(**p) for p in measures[0]["steps"]]
    if steps:
        overheads = fit_steps(steps, overheads)
    overheads = fit_late([JointPoint(**p) for p in measures[0]["joint"]], overheads)
    overheads = fit_ways([WayPoint(**p) for p in measures[0]["ways"]], overheads)
    overheads = replace(
        overheads,
        logit_seconds=rounded(median(m["logit_seconds"] for m in measures), 1e-9),
        host_bytes_per_second=rounded(median(m["swapped_bytes_per_second"] for m in measures), 1e9),
        plain_product_share=rounded(median(m["plain_product_share"] for m in measures), 1.0),
    )
    device = replace(
        base,
        runtime_bytes=max(m["runtime_bytes"] for m in measures),
        estimated=False,
        overheads=overheads,
    )
    kept = [m["fragmentation"] for m in measures if m["fragmentation"] is not None]
    if kept:
        device = replace(device, fragmentation=max(kept))
    if device.kind == "cpu":
        read = median(m["bandwidth_bytes_per_second"] for m in measures)
        device = _with_peaks(device, products, read)
    device = _with_row_factors(fit_products(products, device), products)
    predicted = [
        device.product_seconds(p.rows, p.columns, p.inner, p.weights, p.compute) for p in products
    ]
    wrong = mean_error(predicted, [p.seconds for p in products])
    device = within_layers(device, layers)
    return device, {"products": wrong, "layers": layer_error(layers, overheads)}


def _with_row_factors(device: DeviceType, products: Sequence[ProductPoint]) -> DeviceType:
    """What the formula leaves of each number of rows, over shapes of the format measured most: on
    a processor, libraries have kernels of their own for some."""
    if device.kind != "cpu":
        return device
    (main, _), *_ = Counter(p.compute for p in products).most_common()
    ratios: dict[int, list[float]] = {}
    for p in (p for p in products if p.compute == main):
        predicted = device.product_seconds(p.rows, p.columns, p.inner, p.weights, p.compute)
        ratios.setdefault(p.rows, []).append(p.seconds / predicted)
    factors = tuple((rows, rounded(median(ratios[rows]), 1.0)) for rows in sorted(ratios))
    return replace(device, row_factors=factors)


def within_layers(device: DeviceType, layers: Sequence[LayerPoint]) -> DeviceType:
    """Factors of numbers of rows that count what products (bf16) take within layers as well: few
    rows take longer there than one after the other, when nothing else wants caches and threads."""
    if not device.row_factors:
        return device
    ratios: dict[int, list[float]] = {}
    for p in layers:
        alone = sum(device.product_seconds(p.tokens, *shape, "bf16", "bf16") for shape in p.shapes)
        ratios.setdefault(p.tokens, []).append(p.products_seconds / alone)
    known = sorted(ratios)
    found = [median(ratios[rows]) for rows in known]
    factors = tuple(
        (rows, rounded(factor * float(np.interp(np.log(rows), np.log(known), found)), 1.0))
        for rows, factor in device.row_factors
    )
    return replace(device, row_factors=factors)


def _layers(measure: Json) -> list[LayerPoint]:
    shapes = [tuple(tuple(shape) for shape in p["shapes"]) for p in measure["layers"]]
    return [
        LayerPoint(**{**p, "shapes": shape})
        for p, shape in zip(measure["layers"], shapes, strict=True)
    ]


def _middle(points: Sequence[LayerPoint]) -> LayerPoint:
    return replace(
        points[0],
        products_seconds=median(p.products_seconds for p in points),
        attention_seconds=median(p.attention_seconds for p in points),
        other_seconds=median(p.other_seconds for p in points),
    )


def _with_peaks(
    device: DeviceType, products: Sequence[ProductPoint], read_bytes_per_second: float
) -> DeviceType:
    """A processor has no datasheet for some of its cores: the best that was seen is the peak."""
    flops = dict(device.flops_per_second)
    bandwidth = read_bytes_per_second
    for name in {p.compute for p in products}:
        same = [p for p in products if p.compute == name]
        flops[name] = max(2 * p.rows * p.columns * p.inner / p.seconds for p in same)
        width = precision(name).bytes
        read = [width * p.columns * p.inner / p.seconds for p in same if p.rows <= _READ_ROWS]
        bandwidth = max(bandwidth, *read)
    return replace(
        device,
        memory_bandwidth_bytes_per_second=bandwidth,
        memory_efficiency=read_bytes_per_second / bandwidth,
        compute_efficiency=1.0,
        flops_per_second=flops,
    )


def _joined(node: Node, groups: Sequence[Json], errors: Json) -> Node:
    """The node with its links as they were measured; as they were known where nothing was."""
    if any(g["backend"] == "nccl" for g in groups):
        return replace(node, link=_fitted(node.link, groups, "node", "nccl", errors))
    if not any(g["backend"] == "gloo" and g["where"] == "node" for g in groups):
        return node
    general = _fitted(LOOPBACK, groups, "node", "gloo", errors)
    carried = {
        p["operation"] for g in groups if g["backend"] == "shared_memory" for p in g["points"]
    }
    if not carried:
        return replace(node, link=general, general_link=None)
    link = replace(node.link, operations=tuple(sorted(carried)))
    fast = _fitted(link, groups, "node", "shared_memory", errors)
    return replace(node, link=fast, general_link=general)


def _fitted(
    link: Link, groups: Sequence[Json], where: str, backend: str | None, errors: Json
) -> Link:
    points = [
        CollectivePoint(**p)
        for group in groups
        if group["where"] == where and backend in (None, group["backend"])
        for p in group["points"]
    ]
    fitted = fit_collectives(points, link)
    predicted = [
        fitted.collective_seconds(p.operation, p.full_bytes, p.ranks, p.launch) for p in points
    ]
    wrong = mean_error(predicted, [p.seconds for p in points])
    errors[f"{where} {backend or 'network'}"] = wrong
    return fitted


def describe_host(root: Path = Path("/")) -> Json:
    """What the measurements belong to."""
    return {
        "host": platform.node(),
        "processor": _processor(root),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "tessera": parallel.__version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def _processor(root: Path) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
