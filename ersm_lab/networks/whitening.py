"""The first layer of the book's small networks: fixed filters that whiten patches of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_lab.common import checks


def stem(*, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution whose filters do not train, and a ReLU. (B, 3, H, W) -> (B, channels, h, w)."""
    padding = "same" if stride == 1 else (kernel - stride) // 2
    whiten = nn.Conv2d(3, channels, kernel, stride=stride, padding=padding)
    whiten.weight.requires_grad = False
    assert whiten.bias is not None
    nn.init.zeros_(whiten.bias)
    return nn.Sequential(whiten, nn.ReLU(inplace=True))


class WhitenedNet(nn.Module):
    """A network whose `stem` is that of the function of this name."""

    stem: nn.Sequential

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the stem to whiten patches of normalised images (N, 3, H, W); some 5,000 are enough.

        The filters are the leading eigenvectors of the patches' covariance, scaled to unit variance.

        Raises:
            ValueError: no images, or NaN in them.
        """
        checks.tensor("images", images, "(N, 3, H, W)", "numbers")
        stem = self.stem[0]
        assert isinstance(stem, nn.Conv2d)
        patches = F.unfold(images.float(), stem.kernel_size[0], stride=2)  # (N, 3 k k, L)
        patches = patches.transpose(1, 2).flatten(0, 1).double()  # (N L, 3 k k)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        half = stem.out_channels // 2
        top = (vectors / (values + 5e-4).sqrt()).T.flip(0)[:half]  # (half, 3 k k)
        filters = top.view(half, 3, *stem.kernel_size)
        stem.weight[:half], stem.weight[half : 2 * half] = filters, -filters
