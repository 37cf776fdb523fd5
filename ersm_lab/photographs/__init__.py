"""The method on photographs, in its authors' kind of setting: frozen ImageNet networks, true masks.

sets        where photographs and their object masks are found; splits
backbones   ImageNet weights, checked, and the layers whose maps are read
features    maps of a frozen layer, computed once and kept under data/cache
readers     many masks and linear heads trained side by side on the same batches
measures    true masks of tokens, AUC, deletion, replaced masks
coherence   why neighbours agree: the part of a token that its region shares
perturbed   grey squares, swapped backgrounds
settings    which settings are compared, and the families that a validation split chooses from
probe       what this code does, in numbers that its records hold
study       the runs: their order, their records
verdicts    what the records say to each criterion, and the chapter's tables
criteria.md what counts as an answer, committed before any test image was looked at

The arrows point upwards: `study` sees all, `sets` none of the others.
"""
