"""Give the wheel's two modules the types that are written in them.

A single module cannot carry py.typed (PEP 561 knows packages only), but a folder NAME-stubs beside it is
read by every type checker. The stub of a module is the very file, so the two cannot differ.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Stubs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.copies = Path(tempfile.mkdtemp())
        for module in ("ersm_core", "ersm_attach"):
            copy = self.copies / f"{module}.pyi"
            shutil.copy(Path(self.root, "../..", f"{module}.py"), copy)
            build_data["force_include"][str(copy)] = f"{module}-stubs/__init__.pyi"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.copies)
