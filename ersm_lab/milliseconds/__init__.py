"""Masks into milliseconds: dropped tokens that are not computed, against smaller dense networks."""
