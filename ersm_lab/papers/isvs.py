"""The claims of inverse scale variational sparsification (Zhou et al., arXiv:2409.18419)."""

from __future__ import annotations

from ersm_lab.papers.claim import Claim
from ersm_lab.papers.questions import BETTER, against, asked, corrupted

CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="ISVS 1",
        paper="zhou2024isvs",
        text="Training along the path makes a network more robust to natural corruptions.",
        criterion=(
            "Mean accuracy over all corruptions and severities, `isvs-iterative` and "
            "`isvs-fixed` each "
            f"against the vanilla network. {BETTER}."
        ),
        judge=asked(
            against("isvs-iterative", "ablation-dense", "corruption", corrupted),
            against("isvs-fixed", "ablation-dense", "corruption", corrupted),
        ),
    ),
    Claim(
        key="ISVS 2",
        paper="zhou2024isvs",
        text="It does so better than smoothing by frequency.",
        criterion=(
            "The same, each against a low-pass of equal retained energy and the same stages: "
            "`isvs-iterative`, the paper's method, against `low-pass-iterative`, and `isvs-fixed` "
            f"against `low-pass`. {BETTER}."
        ),
        judge=asked(
            against("isvs-iterative", "low-pass-iterative", "corruption", corrupted),
            against("isvs-fixed", "low-pass", "corruption", corrupted),
        ),
    ),
    Claim(
        key="ISVS 3",
        paper="zhou2024isvs",
        text="It makes a network more robust to low resolution.",
        criterion=f"Mean accuracy over 24, 16, 12 and 8 pixels, against vanilla. {BETTER}.",
        judge=asked(
            against("isvs-iterative", "ablation-dense", "resolution", corrupted),
            against("isvs-fixed", "ablation-dense", "resolution", corrupted),
        ),
    ),
    Claim(
        key="ISVS 4",
        paper="zhou2024isvs",
        text="It makes a network more robust to adversarial noise.",
        criterion=(
            f"Accuracy under AutoAttack of 2/255 on the stated subset, against vanilla. {BETTER}."
        ),
        judge=asked(
            against("isvs-iterative", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
            against("isvs-fixed", "ablation-dense", "attacks", lambda c: c == "autoattack.2"),
        ),
    ),
    Claim(
        key="ISVS 5",
        paper="zhou2024isvs",
        text="It retains textures and contours that frequency-based smoothing takes away.",
        criterion=(
            "None that a record could meet yet. In the figures of chapter 8 the contours stay and the "
            "textures go. The gradient that is left inside textures, over the test images, against a "
            "low-pass of equal retained energy, would decide."
        ),
    ),
    Claim(
        key="ISVS 6",
        paper="zhou2024isvs",
        text="A sparsified image costs O(p) for p pixels.",
        criterion=(
            "Milliseconds an image at 32 and at 224 pixels a side, one thread, for the same steps of "
            "the path and the projection: reproduced if 49 times the pixels take at most 1.5 times 49 "
            "times as long; otherwise not."
        ),
    ),
)
