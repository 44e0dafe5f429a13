"""What images without a truth say about displacements: census, forward against backward, closure of three dates.

All fields are (n, 2, h, w) [px], dy before dx. Each loss is a mean over pixels, and a pixel without data has no part:
not where it is masked, nor where its motion leads to what is masked or leaves the image. None of the three sees an
error that all pairs share: alone they pull the motion towards what stands still (docs/finetune.md).
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..kernels._flow_volume import CELL

REACH = 3
"""Census compares each pixel with those up to so many pixels beside it: 7 x 7."""
TERNARY = 0.8
"""A difference of two pixels counts as large from here on, in units of the image's mean difference."""
UNLIKE = 0.1
"""Squared differences of two ternary values above this count as unlike."""
SOFT = 0.02
"""Shorter vectors hardly count [px]."""
OCCLUDED = 1.0
"""Where forward and backward motion differ by more, one image does not show what the other does [px]."""
_SHIFTS = [(v, u) for v in range(REACH + 1) for u in range(-REACH, REACH + 1) if v > 0 or u > 0]
"""Half of the neighbours: the others see the same pairs of pixels."""


def spread(cells: Tensor) -> Tensor:
    """Values at all pixels between cells (n, c, h, w), as `_flow_field.spread` has them.

    Examples
    --------
    >>> spread(torch.tensor([[[[0.0, 1.0]]]]))[0, 0, 0]
    tensor([0.0000, 0.0000, 0.1250, 0.3750, 0.6250, 0.8750, 1.0000, 1.0000])
    """
    return functional.interpolate(cells, scale_factor=float(CELL), mode="bilinear", align_corners=False)


def sampled(planes: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Planes (n, c, h, w) where the flow leads; beyond the edge stands what is at the edge."""
    h, w = planes.shape[-2:]
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 0]
    x = torch.arange(w, device=flow.device) + flow[:, 1]
    at = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], -1)
    return functional.grid_sample(planes, at, mode, padding_mode="border", align_corners=True)


def shown(ok: Tensor, flow: Tensor) -> Tensor:
    """Where the flow leads to pixels (n, h, w) that can be sampled: all of those around are usable and in the image."""
    bad = functional.pad((~ok).float()[:, None], (2, 2, 2, 2), value=1.0)
    bad = functional.max_pool2d(bad, 5, 1)
    return sampled(bad, flow.detach(), "nearest")[:, 0] == 0


def mean(values: Tensor, part: Tensor) -> Tensor:
    """Mean of the values that have a part; 0 where there are none.

    Examples
    --------
    >>> mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    return torch.where(part, values, 0).sum() / part.sum().clamp(min=1)


def census(one: Tensor, two: Tensor, ok1: Tensor, ok2: Tensor, flow: Tensor) -> Tensor:
    """How unlike each pixel's order among its neighbours is in image 1 (n, bands, h, w) and in image 2 where the flow
    leads.

    Gain, offset and haze change no order. Of a pixel and its neighbour both must be usable in both images (n, h, w).
    """
    moved = sampled(two, flow, "bicubic")
    usable = ok1 & shown(ok2, flow)
    bands, h, w = one.shape[1:]
    total, count = torch.zeros((), device=flow.device), torch.zeros((), device=flow.device)
    for v, u in _SHIFTS:
        here = (..., slice(0, h - v), slice(max(0, -u), w - max(0, u)))
        there = (..., slice(v, h), slice(max(0, u), w + min(0, u)))
        unlike = (_ternary(one[there] - one[here]) - _ternary(moved[there] - moved[here])).square()
        part = usable[here] & usable[there]
        total = total + torch.where(part[:, None], unlike / (UNLIKE + unlike), 0).sum()
        count = count + bands * part.sum()
    return total / count.clamp(min=1)


def _ternary(difference: Tensor) -> Tensor:
    """-1 for less, 0 for the same, 1 for more, and a smooth way between."""
    return difference / (TERNARY**2 + difference.square()).sqrt()


def consistency(there: Tensor, back: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """How far from its start one comes there and back again [px]; and where both images show the same (n, h, w)."""
    left = there + sampled(back, there)
    seen = ok & (left.detach().norm(dim=1) < OCCLUDED)
    return mean(length(left), seen), seen


def closure(ab: Tensor, bc: Tensor, ac: Tensor) -> Tensor:
    """What is left of A to B, from there to C, less A to C (n, 2, h, w) [px]."""
    return ab + sampled(bc, ab) - ac


def length(vectors: Tensor) -> Tensor:
    """Their length, rounded off at zero so that it has a slope there.

    Examples
    --------
    >>> length(torch.tensor([[[0.0]], [[0.0]]])[None]).item()
    0.0
    """
    return (vectors.square().sum(1) + SOFT**2).sqrt() - SOFT
