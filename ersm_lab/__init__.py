"""The bench the notebooks work on: data, backbones, training, evaluation, records and figures.

The method itself is `ersm_core.py`, which knows nothing of this package.
"""

__version__ = "0.1.0"
