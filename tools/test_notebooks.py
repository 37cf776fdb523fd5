"""Run notebooks as tests: every cell at smoke scale, by nbval, some notebooks at the same time.

python tools/test_notebooks.py [--jobs N] [NOTEBOOK ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from watched import Watch, run_side_by_side

ROOT = Path(__file__).resolve().parent.parent
NBVAL = (
    "-q",
    "-p",
    "nbval.plugin",
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout=600",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="default: all")
    parser.add_argument("--jobs", type=int, help="notebooks at the same time; default: one a core")
    args = parser.parse_args()
    notebooks = args.notebooks or sorted(str(path) for path in (ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        print("notebooks/ holds no notebook", file=sys.stderr)
        return 1
    commands = {name: [sys.executable, "-m", "pytest", *NBVAL, name] for name in notebooks}
    env = os.environ | {
        "ERSM_SCALE": "smoke",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a second a notebook
        "HF_HUB_OFFLINE": "1",  # no weights are downloaded for a test
    }
    failed = []
    # A notebook run can stall for no visible reason: then it is stopped and started once more.
    watch = Watch(limit=900, idle=180, retries=1)
    for ended in run_side_by_side(commands, watch=watch, jobs=args.jobs, env=env):
        print(f"== {ended.name}: {ended.seconds:.0f} s\n{ended.output}", flush=True)
        if ended.status:
            failed.append(ended.name)
    if failed:
        print(f"failed at smoke scale: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
