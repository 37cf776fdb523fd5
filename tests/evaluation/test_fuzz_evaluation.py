"""Generated bad calls to what looks at networks, ranks, deletes and attacks (`refusals`)."""

import functools
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from refusals import (
    ASKED,
    BOOTSTRAP,
    LAYER,
    MAPS,
    MOST,
    NETWORK,
    OBJECTS,
    PATCH,
    PIXELS,
    SHARES,
    TARGET,
    Case,
    asked,
    both_tests,
    dense,
    image_set,
    masked,
    not_a,
    not_data,
    not_flag,
    not_labels,
    not_number,
    not_pair,
    not_seed,
    not_several,
    not_share,
    not_tensor,
    not_whole,
    not_word,
    opened,
)
from torch import nn

from ersm_lab.evaluation import (
    attacks,
    deletion,
    deletion_insertion,
    gradients,
    inference,
    object_masks,
    rankings,
    under_attack,
)


@functools.cache
def curve(**_) -> deletion_insertion.PerturbationCurve:
    return deletion_insertion.perturbation_curve(
        dense(),
        image_set(),
        torch.rand(32, 32),
        game="deletion",
        convention=deletion_insertion.TORCHCAM,
    )


def attacked(**arguments) -> Callable[[], dict]:
    def good():
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        labels = torch.tensor([0, 1])
        return {"network": model, "pixels": PIXELS, "labels": labels, "epsilon": 0.1, **arguments}

    return good


ATTACKED = {
    "network": not_a(),
    "pixels": not_tensor(PIXELS) | st.sampled_from([PIXELS - 1, PIXELS + 1]),
    "labels": not_labels(),
    "epsilon": not_number(0, 1, low_is_bad=True),
}

CASES = {
    "evaluating": Case(
        opened(inference.evaluating), lambda: {"model": dense()}, {"model": NETWORK}
    ),
    "predict": Case(inference.predict, asked(flip=True), ASKED | {"flip": not_flag()}),
    "accuracy": Case(inference.accuracy, asked(flip=True), ASKED | {"flip": not_flag()}),
    "answers": Case(inference.answers, asked(), ASKED),
    "look": Case(inference.look, asked(model=masked()), ASKED),
    "progress": Case(inference.progress, asked(model=masked()), ASKED),
    "collect_masks": Case(inference.collect_masks, asked(model=masked()), ASKED),
    "check_invariants": Case(inference.check_invariants, asked(model=masked()), ASKED),
    "evaluate": Case(
        inference.evaluate,
        asked(model=masked(), validation=image_set()),
        ASKED | {"validation": not_data(optional=True)},
    ),
    "energy_masks": Case(inference.energy_masks, lambda: {"model": dense()}, {"model": NETWORK}),
    "has_mask": Case(inference.has_mask, lambda: {"model": dense()}, {"model": NETWORK}),
    "only_mask": Case(inference.only_mask, lambda: {"model": masked()}, {"model": NETWORK}),
    "replaced_mask": Case(
        opened(inference.replaced_mask),
        lambda: {"mask": inference.only_mask(masked()), "change": torch.ones_like},
        {"mask": not_a(dense()), "change": not_a()},
    ),
    "mask_statistics": Case(
        inference.mask_statistics,
        lambda: {"masks": MAPS[:, None], "labels": torch.tensor([0, 1, 2]), "classes": 3},
        {"masks": not_tensor(MAPS[:, None]), "labels": not_labels(3, 3), "classes": not_whole()},
    ),
    "mask_controls": Case(
        inference.mask_controls,
        asked(model=masked(), masks=torch.rand(3, 1, 16, 16)),
        ASKED | {"masks": not_tensor(torch.rand(3, 1, 16, 16)) | st.just({"group9": MAPS})},
    ),
    "deletion_curve": Case(
        deletion.deletion_curve,
        lambda: {
            "predict": lambda keep: keep.flatten(1)[:, :4].float(),
            "importance": MAPS,
            "labels": torch.tensor([0, 1, 2]),
            "fractions": (0.5,),
        },
        {
            "predict": not_a(),
            "importance": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS * torch.nan),
            "labels": not_labels(3),
            "fractions": SHARES,
        },
    ),
    "keep_masks": Case(
        deletion.keep_masks,
        lambda: {"importance": MAPS, "fraction": 0.5},
        {
            "importance": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS * torch.nan),
            "fraction": not_share(),
        },
    ),
    "token_norms": Case(
        deletion.token_norms,
        lambda: {"x": PIXELS, "patch_size": 2},
        {"x": not_tensor(PIXELS, nan=False, kinds=False), "patch_size": not_whole(1, 8)},
    ),
    "centre_prior": Case(
        deletion.centre_prior,
        lambda: {"height": 3, "width": 4},
        {"height": not_whole(1, 10_000), "width": not_whole(1, 10_000)},
    ),
    "random_ranking": Case(
        deletion.random_ranking,
        lambda: {"shape": (3, 4), "seed": 0},
        {"shape": not_several(not_whole(1, MOST)), "seed": not_seed()},
    ),
    "network_predictor": Case(deletion.network_predictor, asked(model=masked()), ASKED),
    "Convention": Case(
        deletion_insertion.Convention,
        lambda: vars(deletion_insertion.RISE).copy(),
        {
            "name": not_word().map(lambda word: "" if isinstance(word, str) else word),
            "source": not_word().map(lambda word: "" if isinstance(word, str) else word),
            "unit": not_word("pixel", "token"),
            "includes_start": not_flag(),
            "deletion_fill": not_word("zero", "blur", "minimum"),
            "insertion_fill": not_word("zero", "blur", "minimum", optional=True),
            "step": not_whole().map(lambda k: ("rows", k)) | not_a(("row", 1), ("rows",)),
            "score": not_word("probability", "accuracy"),
            "target": TARGET,
            "area": not_word("mean of steps", "over fraction", "sum of steps"),
        },
    ),
    "on_tokens": Case(
        deletion_insertion.on_tokens,
        lambda: {"convention": deletion_insertion.RISE},
        {"convention": not_a()},
    ),
    "Convention.points": Case(
        deletion_insertion.RISE.points,
        lambda: {"height": 3, "width": 4},
        {"height": not_whole(1, 10_000), "width": not_whole(1, 10_000)},
    ),
    "perturbation_curve": Case(
        deletion_insertion.perturbation_curve,
        asked(
            importance=torch.rand(32, 32), game="deletion", convention=deletion_insertion.TORCHCAM
        ),
        ASKED
        | {
            "importance": not_tensor(torch.rand(3, 32, 32), nan=False, kinds=False)
            | st.sampled_from([torch.rand(2, 32, 32), torch.full((32, 32), torch.nan), MAPS]),
            "game": not_word("deletion", "insertion"),
            "convention": not_a(),
            "layer": not_word(optional=True),
            "batch_size": not_whole(),
        },
    ),
    "resize": Case(
        deletion_insertion.resize,
        lambda: {"importance": MAPS, "size": (8, 8)},
        {
            "importance": not_tensor(MAPS, nan=False),
            "size": not_pair(not_whole(1, 10_000), 8),
        },
    ),
    "blurred": Case(
        deletion_insertion.blurred, lambda: {"x": PIXELS}, {"x": not_tensor(PIXELS, nan=False)}
    ),
    "rank_tokens": Case(
        rankings.rank_tokens,
        asked(layer="group1", names=("magnitude", "random")),
        ASKED
        | {
            "layer": LAYER,
            "names": not_several(not_word(*rankings.RANKINGS), optional=True),
            "patch_size": PATCH,
            "target": TARGET,
            "seed": not_seed(),
        },
    ),
    "energies": Case(
        rankings.energies, asked(model=masked(), layer="group1"), ASKED | {"layer": LAYER}
    ),
    "magnitudes": Case(
        rankings.magnitudes,
        asked(layer="group1"),
        ASKED | {"layer": LAYER, "patch_size": not_whole(1, 16)},
    ),
    "grad_cam": Case(
        rankings.grad_cam,
        asked(layer="group1"),
        ASKED
        | {
            "layer": LAYER,
            "patch_size": not_whole(1, 16),
            "target": TARGET,
            "batch_size": not_whole(),
        },
    ),
    "integrated_gradients": Case(
        rankings.integrated_gradients,
        asked(grid=(8, 8), steps=2),
        ASKED
        | {
            "grid": not_pair(not_whole(1, 32), 8) | st.just((5, 8)),
            "target": TARGET,
            "steps": not_whole(1, MOST),
            "batch_size": not_whole(),
        },
    ),
    "token_integrated_gradients": Case(
        rankings.token_integrated_gradients,
        asked(layer="group1", steps=2),
        ASKED
        | {
            "layer": LAYER,
            "patch_size": not_whole(1, 16),
            "target": TARGET,
            "steps": not_whole(1, MOST),
            "batch_size": not_whole(),
        },
    ),
    "edge_strength": Case(
        rankings.edge_strength,
        lambda: {"data": image_set(), "grid": (8, 8)},
        {"data": not_data(), "grid": not_pair(not_whole(1, 32), 8) | st.just((5, 8))},
    ),
    "on_grid": Case(
        rankings.on_grid,
        lambda: {"pixels": MAPS, "grid": (2, 2)},
        {"pixels": not_tensor(MAPS, nan=False), "grid": not_pair(not_whole(1, 4), 2)},
    ),
    "token_stage": Case(
        rankings.token_stage,
        lambda: {"model": dense(), "layer": "group1"},
        {"model": NETWORK, "layer": LAYER},
    ),
    "layer_tokens": Case(
        rankings.layer_tokens,
        lambda: {"model": dense(), "layer": "group1", "x": torch.rand(2, 3, 32, 32)},
        {"model": NETWORK, "layer": LAYER, "x": not_tensor(PIXELS, nan=False)},
    ),
    "rest_of_network": Case(
        opened(rankings.rest_of_network),
        lambda: {"model": dense(), "layer": "group1", "x": torch.rand(2, 3, 32, 32)},
        {"model": NETWORK, "layer": LAYER, "x": not_tensor(PIXELS, nan=False)},
    ),
    "to_pixels": Case(
        object_masks.to_pixels,
        lambda: {"maps": MAPS, "size": (8, 8), "smooth": True},
        {
            "maps": not_tensor(MAPS, nan=False, kinds=False),
            "size": not_pair(not_whole(1, 10_000), 8),
            "smooth": not_flag(),
        },
    ),
    **{
        score.__name__: Case(
            score,
            lambda: {"maps": MAPS, "objects": OBJECTS},
            {
                "maps": not_tensor(MAPS, nan=False, kinds=False) | st.just(MAPS[:2]),
                "objects": not_tensor(OBJECTS) | st.just(OBJECTS[:2]),
            },
        )
        for score in (
            object_masks.saliency_scores,
            object_masks.iou_top_k,
            object_masks.pointing,
            object_masks.inside,
            object_masks.auc,
        )
    },
    **{
        score.__name__: Case(
            score,
            lambda: {"masks": OBJECTS.float(), "objects": OBJECTS},
            {
                "masks": not_tensor(MAPS, nan=False, kinds=False) | st.just(2 * MAPS + 1),
                "objects": not_tensor(OBJECTS) | st.just(OBJECTS[:2]),
            },
        )
        for score in (object_masks.mask_scores, object_masks.iou)
    },
    "object_masks.summary": Case(
        object_masks.summary,
        lambda: {"values": torch.rand(3)},
        {"values": not_a(MAPS, torch.tensor(0.5), [0.5])},
    ),
    "AttackSettings": Case(
        attacks.AttackSettings,
        dict,
        {
            "attacks": not_several(not_word("fgsm", "pgd", "autoattack")),
            "surrogates": not_several(not_word("soft", "bpda"), empty=False),
            "epsilons": not_several(not_number(0, 1, low_is_bad=True)),
            "images": not_whole(),
            "temperature": not_number(0, 1e6, low_is_bad=True),
            "pgd_steps": not_whole(1, MOST),
            "pgd_step": not_number(0, 1_000, low_is_bad=True),
            "apgd_steps": not_whole(1, MOST),
            "targets": not_whole(),
            "square_queries": not_whole(1, MOST),
            "batch_size": not_whole(),
            "seed": not_seed(),
            "confidence": BOOTSTRAP["confidence"],
        },
    ),
    "PixelNetwork": Case(attacks.PixelNetwork, asked(), {"model": NETWORK, "data": not_a()}),
    "pixels_of": Case(attacks.pixels_of, lambda: {"data": image_set()}, {"data": not_a()}),
    "surrogate": Case(
        opened(gradients.surrogate),
        lambda: {"model": masked(), "kind": "soft", "temperature": 1.0},
        {
            "model": NETWORK | st.just(nn.Identity()),
            "kind": not_word(*attacks.SURROGATES),
            "temperature": not_number(0, 1e6, low_is_bad=True),
        },
    ),
    "gradient_check": Case(
        gradients.gradient_check,
        asked(steps=(1e-3,)),
        ASKED
        | {"steps": not_several(not_number(0, 1, low_is_bad=True)), "batch_size": not_whole()},
    ),
    "fgsm": Case(attacks.fgsm, attacked(), ATTACKED),
    "pgd": Case(
        attacks.pgd,
        attacked(steps=2),
        ATTACKED
        | {
            "steps": not_whole(1, MOST),
            "step": not_number(0, 1_000, low_is_bad=True),
            "generator": not_a(optional=True),
        },
    ),
    "autoattack_members": Case(
        attacks.autoattack_members,
        lambda: {"network": dense(), "epsilon": 0.1, "classes": 4, "settings": attacks.SMOKE},
        {
            "network": not_a(),
            "epsilon": not_number(0, 1, low_is_bad=True),
            "classes": not_whole(4),
            "settings": not_a(),
        },
    ),
    "evaluate_attacks": Case(
        under_attack.evaluate_attacks,
        asked(settings=attacks.AttackSettings(attacks=("fgsm",), epsilons=(0.1,))),
        ASKED | {"settings": not_a()},
    ),
}
test_what_works, test_what_does_not = both_tests(CASES)
