"""What is measured of readers, one number an image, and of maps that nobody trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ersm_lab.evaluation import deletion
from ersm_lab.photographs.features import Maps
from ersm_lab.photographs.readers import Frozen, Readers, agreement


def token_auc(values: Tensor, on: Tensor, off: Tensor) -> Tensor:
    """Chance that a pixel of the object lies in a higher token than one of the ground, (N,).

    The area under the ROC curve of a map whose tokens give their value to all their pixels, exactly
    `object_masks.auc` of the stretched map: tokens i, j count on_i off_j, ties one half.

    Args:
        values: (N, h, w), higher where the object is thought to be.
        on, off: (N, h, w), share of each token that is object, that is ground.

    Returns:
        float64; NaN where an image has no true mask, no object or no ground.
    """
    v = values.flatten(1).contiguous()  # (N, T)
    on, off = on.double().flatten(1), off.double().flatten(1)  # (N, T)
    ranked, order = v.sort(1)
    ground = F.pad(off.gather(1, order).cumsum(1), (1, 0))  # (N, T + 1), of the k lowest tokens
    below, up_to = (
        ground.gather(1, torch.searchsorted(ranked, v, right=right)) for right in (False, True)
    )
    return (on * (below + up_to) / 2).sum(1) / (on.sum(1) * off.sum(1))  # 0 / 0 is NaN


def untrained(maps: Maps, *, inner: bool = False) -> dict[str, Tensor]:
    """AUC of rankings that need no training, each (N,).

    Args:
        maps: of one layer.
        inner: leave out the tokens of the border: no missing neighbour, less of a centre prior.
    """
    wide = maps.tokens.float()  # (N, C, h, w)
    height, width = wide.shape[2:]
    ranked = {
        "norm": wide.square().sum(1).sqrt(),
        "centre": deletion.centre_prior(height, width).expand(len(maps), -1, -1),
        "agreement": agreement(wide, border="mean"),
        "agreement 4": agreement(wide, neighbourhood=4, border="mean"),
        "agreement sum": agreement(wide, border="sum"),
    }
    cut = slice(1, -1) if inner else slice(None)
    on, off = maps.on[:, cut, cut], maps.off[:, cut, cut]
    return {name: token_auc(value[:, cut, cut], on, off) for name, value in ranked.items()}


def closed_first(maps: Maps, middle: Tensor) -> dict[str, Tensor]:
    """AUC of what a pressure without a pattern should close first, each (N,).

    The slope of sum m in w is -sum m (1 - m) p^: descent moves w towards the mean token, and Adam, which
    moves every weight alike, along its signs. So z rises most where p^ is near the mean token
    ("typical"), and where its channels add up to much ("dense", ||p^||_1 of a map without negatives).

    Args:
        maps: of the images.
        middle: (C,), `readers.mean_token` of the training images.
    """
    unit = F.normalize(maps.tokens.float(), dim=1)  # (N, C, h, w)
    ranked = {"typical": torch.einsum("nchw,c->nhw", unit, middle), "dense": unit.sum(1)}
    return {name: token_auc(value, maps.on, maps.off) for name, value in ranked.items()}


def outcomes(
    readers: Readers, data: Frozen, maps: Maps, *, seed: int, middle: Tensor | None = None
) -> dict[str, Tensor]:
    """Of every reader and image, each (K, N).

    Args:
        readers: trained.
        data, maps: of the images.
        seed: of who gets whose mask.
        middle: (positions, K), the mean mask by position of the training images; None leaves it out.

    Returns:
        right: whether it is classified rightly; right_other: with another image's mask; right_middle:
        with the mean mask by position; loss: cross-entropy; kept: mean mask; auc: of -z against the
        true object.
    """
    tokens, labels = data.tokens, data.labels
    z = torch.cat([readers.logits(part) for part in tokens.split(256)])  # (N, T, K)
    m = readers.masks(z, data.on)  # (N, T, K)

    def scores(masks: Tensor) -> Tensor:
        parts = zip(tokens.split(256), masks.split(256), strict=True)
        return torch.cat([readers.scores(part, mask) for part, mask in parts])  # (N, K, Q)

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # a cycle: nobody keeps the own mask
    own = scores(m)  # (N, K, Q)
    found = {
        "right": own.argmax(2) == labels[:, None],
        "right_other": scores(m[other]).argmax(2) == labels[:, None],
        "loss": torch.stack(
            [F.cross_entropy(s, labels, reduction="none") for s in own.unbind(1)], 1
        ),
        "kept": m.mean(1),
    }
    if middle is not None:
        found["right_middle"] = scores(middle.expand_as(m)).argmax(2) == labels[:, None]
    grid = maps.on.shape
    found["auc"] = torch.stack(
        [token_auc(-part.reshape(grid), maps.on, maps.off) for part in z.unbind(2)], 1
    )
    return {name: value.T.contiguous() for name, value in found.items()}


def middle_mask(readers: Readers, data: Frozen) -> Tensor:
    """Mean mask by position, (T, K)."""
    parts = zip(data.tokens.split(256), data.on.split(256), strict=True)
    sums = [readers.masks(readers.logits(part), on).sum(0) for part, on in parts]
    return torch.stack(sums).sum(0) / len(data.labels)


def class_map(readers: Readers, data: Frozen, number: int) -> Tensor:
    """Class-activation map of one reader's head for the class that it predicts, (N, T).

    For mean pooling Grad-CAM of the map is this, rectified (Selvaraju et al., 2017, appendix A).
    """
    head = readers.head[number]  # (Q, C)
    predicted = _predictions(readers, data, number)  # (N,)
    return torch.cat(
        [
            torch.einsum("ntc,nc->nt", part, head[mine])
            for part, mine in zip(data.tokens.split(256), predicted.split(256), strict=True)
        ]
    )


def _predictions(readers: Readers, data: Frozen, number: int) -> Tensor:
    found = []
    for part, on in zip(data.tokens.split(256), data.on.split(256), strict=True):
        m = readers.masks(readers.logits(part), on)
        found.append(readers.scores(part, m)[:, number].argmax(1))
    return torch.cat(found)


def deleted(
    readers: Readers, data: Frozen, number: int, ranking: Tensor, *, fractions=deletion.FRACTIONS
) -> Tensor:
    """Share of the fractions at which an image is still right when its least important tokens are
    deleted, (N,): its mean over images is the deletion AUC of `ersm_lab.deletion`.

    As the released code does it: 0/1 masks on the trained reader, nothing re-scaled.

    Args:
        readers, data: as in `outcomes`.
        number: of the reader, one with mean pooling.
        ranking: (N, h, w), larger is more important.
        fractions: of the tokens.
    """
    head, bias = readers.head[number], readers.head_bias[number]
    parts = torch.cat([part @ head.T for part in data.tokens.split(256)]) / data.tokens.shape[1]
    right = torch.zeros(len(data.labels), dtype=torch.float64)
    for fraction in fractions:
        keep = deletion.keep_masks(ranking, fraction).flatten(1).float()  # (N, T)
        scores = torch.einsum("ntq,nt->nq", parts, keep) + bias  # (N, Q)
        right += (scores.argmax(1) == data.labels).double()
    return right / len(fractions)
