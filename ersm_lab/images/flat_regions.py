"""The nearest image that is flat across closed edges: means over the components that they join.

Source: arXiv:2409.18419, Proposition 1.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ersm_lab.common import checks


def project(u: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The nearest image that is flat across every closed edge, in a time of O(pixels).

    argmin over v of |v - u|^2 with (D v)_e = 0 for every closed edge e: the mean of u over each
    connected component of the graph of closed edges (arXiv:2409.18419, Proposition 1).

    Args:
        u: (B, C, H, W).
        right: bool (B, G, H, W - 1), True where the edge to the right is open; G is 1 for one graph
            of all channels, or C.
        down: bool (B, G, H - 1, W), the same for the edge below.

    Returns:
        (B, C, H, W), in u's type; sums are taken in float64.

    Raises:
        ValueError: edges of another image, or that are not bool.
    """
    checks.tensor("u", u, "(B, C, H, W)", "floats")
    b, c, h, w = u.shape
    for name, edges in {"right": right, "down": down}.items():
        checks.a(name, edges, Tensor)
        if edges.dim() != 4:
            raise ValueError(f"{name} must be a tensor of 4 sides, got {checks.shown(edges)}")
    graphs = right.shape[1]
    if right.shape != (b, graphs, h, w - 1) or down.shape != (b, graphs, h - 1, w):
        raise ValueError(
            f"right and down, edges of {tuple(u.shape)} are (B, G, H, W - 1) and (B, G, H - 1, W), "
            f"got {tuple(right.shape)} and {tuple(down.shape)}"
        )
    if graphs not in (1, c):
        raise ValueError(f"G is 1 or the number of channels, {c}; got {graphs}")
    if right.dtype != torch.bool or down.dtype != torch.bool:
        raise ValueError(
            f"right and down must be bool, True where an edge is open, got {right.dtype} and "
            f"{down.dtype}"
        )
    return means_over(u, right, down)


def means_over(u: Tensor, right: Tensor, down: Tensor) -> Tensor:
    (b, c, h, w), graphs = u.shape, right.shape[1]
    label, count = components(~right.flatten(0, 1), ~down.flatten(0, 1))  # (B G H W,)
    values = u.double().reshape(b, graphs, c // graphs, h * w).transpose(2, 3).flatten(0, 2)
    # (B G H W, C / G)
    total = values.new_zeros(count, c // graphs).index_add_(0, label, values)
    mean = total / torch.bincount(label, minlength=count)[:, None]  # (components, C / G)
    flat = mean[label].view(b, graphs, h * w, c // graphs).transpose(2, 3)
    return flat.reshape(b, c, h, w).to(u.dtype)


def components(right: Tensor, down: Tensor) -> tuple[Tensor, int]:
    """Which component each pixel belongs to, int64 (N H W,), and how many there are.

    Args:
        right, down: bool (N, H, W - 1) and (N, H - 1, W), True where two pixels are joined.
    """
    n, h, w = len(right), right.shape[1], down.shape[2]
    pixel = torch.arange(n * h * w, device=right.device).view(n, h, w)
    first = torch.cat([pixel[..., :-1][right], pixel[:, :-1][down]])  # (joined,)
    second = torch.cat([pixel[..., 1:][right], pixel[:, 1:][down]])
    label = _labels_scipy if first.device.type == "cpu" else _labels_torch
    return label(first, second, n * h * w)


def _labels_scipy(first: Tensor, second: Tensor, pixels: int) -> tuple[Tensor, int]:
    ends = (first.numpy().astype(np.int32), second.numpy().astype(np.int32))
    graph = coo_array((np.ones(len(first), np.int8), ends), (pixels, pixels))
    count, label = connected_components(graph, directed=False)
    return torch.from_numpy(label).long(), count


def _labels_torch(first: Tensor, second: Tensor, pixels: int) -> tuple[Tensor, int]:
    """On any device: hang the larger root of each joined pair on the smaller, then let all pixels
    jump to the root of their root until nothing moves; repeat until every pair has one root."""
    own = torch.arange(pixels, device=first.device)
    root = own.clone()
    while len(first):
        a, b = root[first], root[second]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root, above := root[root]):
            root = above
        apart = root[first] != root[second]
        first, second = first[apart], second[apart]
    number = (root == own).cumsum(0) - 1  # counts the roots
    return number[root], int(number[-1]) + 1 if pixels else 0
