"""What a page says at its top: which images it ran on."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from ersm_lab.images import data


@dataclass(frozen=True, kw_only=True)
class Notice:
    """An admonition of the web book; plain text where HTML is not shown."""

    title: str
    text: str
    kind: str = "note"

    def _repr_html_(self) -> str:
        title = f'<p class="admonition-title">{escape(self.title)}</p>'
        return f'<div class="admonition {self.kind}">{title}<p>{escape(self.text)}</p></div>'

    def __repr__(self) -> str:
        return f"{self.title}: {self.text}"


def images_notice(dataset: str | None = None) -> Notice:
    """Which images this page ran on, and what that means for its numbers.

    Args:
        dataset: a name of `data.DATASETS`; None is what `data.default_dataset` finds.
    """
    dataset = dataset or data.default_dataset()
    if not dataset.startswith("shapes"):
        text = f"This page ran on {dataset.upper().replace('CIFAR', 'CIFAR-')}."
        return Notice(title="Images", text=text)
    return Notice(
        title="Images: a stand-in",
        text=(
            "CIFAR-10 was neither found nor could it be downloaded when this page ran. The embedded "
            "data set, textured shapes, stands in for its images. Tables that name cifar10 still "
            "show what was recorded on CIFAR-10. To run on it, set ERSM_DATA_DIR."
        ),
        kind="warning",
    )
