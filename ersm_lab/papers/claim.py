"""A claim of a paper, and what the records say of it.

Outcomes: *reproduced*, *partly*, *not reproduced*; *open* where the interval decides nothing or seeds
are missing; *not yet run* where no record speaks of it, or of a pair that the criterion names;
*untestable here* where this bench has no means to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ersm_lab.views.tables import NOT_RUN


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What records say of a claim: `outcome` (see the module), our `figure` in words and numbers, and
    the `methods` whose records it is drawn from."""

    outcome: str
    figure: str = ""
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper.

    Attributes:
        key: short name, such as "ERSM (c)".
        paper: key of the bibliography.
        text: what is claimed, in our words.
        criterion: what counts as what.
        judge: (dataset, scale) -> one finding for each setting in which it is judged; empty where no
            record speaks of it.
    """

    key: str
    paper: str
    text: str
    criterion: str
    judge: Callable[[str, str], list[Finding]] = lambda dataset, scale: []

    def findings(self, *, dataset: str = "cifar10", scale: str = "laptop") -> list[Finding]:
        """The findings, at least one."""
        return self.judge(dataset, scale) or [Finding(outcome=NOT_RUN)]
