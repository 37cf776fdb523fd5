"""`make reproduce`: the workflow on this machine, one at a time.

Snakemake leaves its lock behind when it is killed, and refuses to start again until somebody removes
it. Here another lock takes its place, which the system itself takes from a process that ends in
whatever way.

    python workflow/reproduce.py [OPTION OF SNAKEMAKE ...]
"""

import fcntl
import os
import sys
from pathlib import Path

from ersm_lab.results import records


def main(options: list[str]) -> None:
    folder = records.home() / "_build" / "workflow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        running = open(folder / ".running", "a")
    except OSError as error:
        sys.exit(f"{error}. Set ERSM_HOME to a folder that can be written.")
    try:
        fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"`make reproduce` is at work in {folder} already: let it end, or stop it first.")
    os.set_inheritable(running.fileno(), True)  # Snakemake, which this process becomes, holds it on
    # Relative, because Snakemake takes the path of its settings for a pattern: [ ] would stand for more.
    os.chdir(Path(__file__).resolve().parents[1])
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    snakemake += ["--directory", str(folder), "--nolock", *options]
    os.execv(snakemake[0], snakemake)


if __name__ == "__main__":
    main(sys.argv[1:])
