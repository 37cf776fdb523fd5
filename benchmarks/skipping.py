"""How much faster a block is that skips dropped tokens: python benchmarks/skipping.py [--record]."""

import argparse

from ersm_lab.milliseconds import one_block

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--scale", choices=("smoke", "laptop"), default="smoke")
parser.add_argument("--record", action="store_true", help="write the laptop record")
options = parser.parse_args()
if options.record:
    found = one_block.record()["metrics"]
else:
    settings = one_block.SMOKE if options.scale == "smoke" else one_block.BlockSettings()
    found = one_block.measure(settings)
for place, numbers in found.items():
    times = ", ".join(f"{float(s):.0%} kept {t:.2f}×" for s, t in numbers["times"].items())
    print(f"{place}: {numbers['dense_us']:.0f} µs an image dense; {times}")
