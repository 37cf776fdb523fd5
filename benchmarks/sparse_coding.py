"""What a sparse code costs beside a convolution and beside a direct transcription of its algorithm.

Every round times one training step of each variant, in turn, so that whatever else the machine does
falls on all of them; the table gives medians over rounds and medians of the ratios.

    python benchmarks/sparse_coding.py [--rounds 15] [--batch 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ersm_lab.common.timing import side_by_side
from ersm_lab.networks import backbones
from ersm_lab.networks.fista import PUBLISHED
from ersm_lab.networks.sdnet import attach_sparse_coding, sdnet18
from ersm_lab.networks.sparse_coding import SparseCoding2d
from ersm_lab.training.loop import resolve_precision


class Transcription(nn.Module):
    """The published algorithm operation by operation (arXiv:2210.12945), two steps, stride 1.

    Before each pass the weights are given unit norm and the step size is found by a power iteration
    on codes, warm-started, of at most 50 iterations or until the vector changes by less than 1e-5
    squared. The losses that the authors' layer also computes in each pass are left out.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.padding = nn.Parameter(conv.weight.detach().clone()), conv.padding
        self.vector: Tensor | None = None  # (1, K, h, w)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight /= torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        step = 0.9 / self.largest_eigenvalue(x)
        code = self.prox(step * self.down(x), step)  # (B, K, h, w)
        rest = x - self.up(code)  # (B, C, H, W)
        return self.prox(code + step * self.down(rest), step)

    def down(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=self.padding)

    def up(self, code: Tensor) -> Tensor:
        return F.conv_transpose2d(code, self.weight, padding=self.padding)

    def prox(self, code: Tensor, step: float) -> Tensor:
        return F.relu(F.softshrink(code, step * PUBLISHED.lambda_l1))

    @torch.no_grad()
    def largest_eigenvalue(self, x: Tensor) -> float:
        v = torch.randn_like(self.down(x[:1])) if self.vector is None else self.vector
        v = F.normalize(v.flatten(), dim=0).view_as(v)
        for _ in range(50):
            last, v = v, self.down(self.up(v))  # (1, K, h, w)
            v = F.normalize(v.flatten(), dim=0).view_as(v)
            if (v - last).square().sum().item() <= 1e-5:
                break
        self.vector = v
        return self.up(v).square().sum().item()


def step_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One whole training step: forward, backward, optimiser."""
    model = model.to(x.device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, nesterov=True
    )
    low = resolve_precision("auto", x.device.type) == "bf16-mixed"

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            loss = model(x).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Medians, and ratios to the convolution and to the transcription, round by round."""
    print(f"\n{title}\n{'':28}{'ms':>9}{'of convolution':>17}{'of transcription':>18}")
    for name, values in seconds.items():
        ratios = [
            statistics.median(v / b for v, b in zip(values, seconds[base], strict=True))
            for base in ("convolution", "transcription")
        ]
        print(
            f"{name:28}{1e3 * statistics.median(values):9.1f}{ratios[0]:16.2f}x{ratios[1]:17.2f}x"
        )
    print(f"({len(values)} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layer-only", action="store_true", help="no whole networks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(arguments.batch, 3, 32, 32, device=device)
    x = x.to(memory_format=torch.channels_last)
    print(
        f"batch {arguments.batch} of 32 x 32, {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {resolve_precision('auto', device)}"
    )

    def compare(title: str, models: dict[str, nn.Module]) -> None:
        variants = {name: step_of(model, x) for name, model in models.items()}
        report(title, side_by_side(variants, arguments.rounds))

    def variants_of(conv: nn.Conv2d) -> dict[str, nn.Module]:
        code, transcription = SparseCoding2d.from_conv(conv), Transcription(conv)
        return {"convolution": conv, "transcription": transcription, "sparse code": code}

    conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    compare("The layer alone, 3 to 64 channels: training steps", variants_of(conv))
    if arguments.layer_only:
        return

    resnets = {"convolution": backbones.resnet18(), "transcription": sdnet18()}
    resnets["transcription"].conv1 = Transcription(resnets["convolution"].conv1)
    compare("ResNet-18 with this layer: training steps", resnets | {"sparse code": sdnet18()})

    laptop = {"convolution": backbones.CifarNet(), "sparse code": backbones.CifarNet()}
    laptop["transcription"] = attach_sparse_coding(backbones.CifarNet())
    laptop["transcription"].group1[0] = Transcription(laptop["convolution"].group1[0])
    attach_sparse_coding(laptop["sparse code"])
    compare("Laptop preset with a code in group1: training steps", laptop)


if __name__ == "__main__":
    main()
