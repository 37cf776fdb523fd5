"""Batch normalisation over all processes, so that two processes compute what one does."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; what each of them loses by it flows back to all."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm` for CPU processes, which torch refuses: every process holds an equal
    share of the batch, and moments are averaged over all of them, with gradient.

    Shape:
        x (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        dims = (0, 2, 3)
        values = x.float()
        moments = torch.stack([values.mean(dims), values.square().mean(dims)])  # (2, C)
        mean, square = _SumOverProcesses.apply(moments) / dist.get_world_size()  # (C,), (C,)
        variance = (square - mean.square()).clamp_min(0.0)  # rounding may leave it just below 0
        count = x.numel() / x.shape[1] * dist.get_world_size()
        means, variances, seen = self.running_mean, self.running_var, self.num_batches_tracked
        if means is None or variances is None or seen is None or self.momentum is None:
            raise ValueError("batch normalisation needs running statistics with a momentum here")
        with torch.no_grad():
            means.lerp_(mean, self.momentum)
            variances.lerp_(variance * count / (count - 1), self.momentum)
            seen += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight  # (C,)
        shift = self.bias - mean * scale  # (C,)
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Exchange every BatchNorm2d, in place, for one that normalises over all processes' images.

    The model must be on its device already: it decides which kind replaces them.
    """
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm2d
    return model
