"""What the demo page loads: two trained networks as ONNX, sample images, and a manifest of both.

    python -m ersm_lab export-demo

A graph takes the pixels as they are, uint8 (1, H, W, 3), and normalises them itself. That of a dense
network gives logits; that of a masked one also takes a threshold t and gives what its mask saw:

    m_i = 1 where z_i < t, else 0        t = 0 is the network as trained, t = inf keeps every token

Convolutions and the head are stored in half precision, which holds them exactly (`runs.halve`), and
are widened where they are used: half the download, the same numbers. Each graph is compared with
torch before anything is written, and the largest difference goes into the manifest.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ersm_lab.common import checks
from ersm_lab.evaluation.inference import energy_masks, evaluating, only_mask, replaced_mask
from ersm_lab.images import shapes
from ersm_lab.images.data import ImageSet
from ersm_lab.images.painted_scenes import SCENES, painted_scene
from ersm_lab.networks.backbones import CifarNet
from ersm_lab.results import records
from ersm_lab.training import experiments, runs
from ersm_lab.views.widgets import png

RECORDS = {
    "dense": "laptop/cifar10/ablation-dense/seed0",
    "ersm": "laptop/cifar10/ablation-ersm/seed0",
}
# Of CIFAR-10, as `data.load` has them: here too, so that the export needs no images of CIFAR-10.
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

SHOWN_SHAPES = ("star", "ring", "hourglass")  # textured shapes among the samples
SHAPES_SEED = 7
CHECKED = {"textured shapes": 50, "random pixels": 50}  # images, besides the samples
TOLERANCE = 1e-4  # of logits, z and energy against torch; a token this near to t may flip
LARGEST = 1_000_000  # bytes of a network
ENGINE = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web


def default_folder() -> Path:
    """Where the page's files lie."""
    return records.home() / "book" / "_static" / "demo"


def export_demo(folder: Path | None = None) -> dict[str, Any]:
    """Write both networks, the sample images and `manifest.json`, replacing what is there.

    Args:
        folder: None is `default_folder()`.

    Returns:
        The manifest.

    Raises:
        LookupError: a record is missing, or a package that the export needs.
        OSError: a checkpoint or a file of onnxruntime-web is missing.
        ValueError: a graph does not agree with torch, or is too large.
    """
    folder = folder or default_folder()
    described_engine = engine(default_folder().parent / "vendor" / "onnxruntime-web")
    pictures, described = samples()
    images = checked_images(pictures)
    written, networks = {}, {}
    for kind, name in RECORDS.items():
        record = records.read(name)
        model = runs.restore(experiments.find(name), record)
        assert isinstance(model, CifarNet)  # as these experiments are of
        graph = export_network(model)
        if len(graph) > LARGEST:
            raise ValueError(f"{kind}.onnx has {len(graph)} bytes: more than {LARGEST}")
        written[f"{kind}.onnx"] = graph
        networks[kind] = {
            **file_entry(f"{kind}.onnx", graph),
            "record": name,
            "checkpoint_sha256": record["checkpoint"]["sha256"],
            "test_accuracy": record["metrics"]["test_accuracy"],
            "largest_difference": largest_difference(model, graph, images),
            "checked_images": len(images),
        }
        if energy_masks(model):
            ranges = value_ranges(model, images)
    for entry, picture in zip(described, pictures, strict=True):
        written[entry["file"]] = png(picture.numpy())
    manifest = {
        "about": "Written by `python -m ersm_lab export-demo`; see tests/bench/test_demo_export.py",
        "engine": described_engine,
        "networks": networks,
        "tolerance": TOLERANCE,
        "classes": CLASSES,
        "mean": MEAN,
        "std": STD,
        "side": pictures.shape[1],
        "ranges": ranges,
        "samples": described,
    }
    written["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in written.items():
        (folder / file).write_bytes(content)
    return manifest


def file_entry(file: str, content: bytes) -> dict[str, Any]:
    """Name, size in bytes and hash of a file, for the manifest."""
    return {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def engine(folder: Path) -> dict[str, Any]:
    """Version and files of the onnxruntime-web that lies in a folder."""
    files = {file: (folder / file).read_bytes() for file in ENGINE}
    version = re.search(rb"ONNX Runtime Web v([\d.]+)", files[ENGINE[0]])
    return {
        "name": "onnxruntime-web",
        "version": version[1].decode() if version else None,
        "files": [file_entry(file, content) for file, content in files.items()],
    }


# --- images ----------------------------------------------------------------------------------------


def samples() -> tuple[Tensor, list[dict[str, Any]]]:
    """The images that the page offers: painted scenes, then textured shapes.

    Returns:
        uint8 (N, 32, 32, 3); and of each its file, what it shows, and the class that is meant, which
        is None for a shape.
    """
    pictures = [torch.from_numpy(painted_scene(name)) for name in SCENES]
    described: list[dict[str, Any]] = [
        {"file": f"{name}.png", "shows": scene.shows, "class": scene.meant}
        for name, scene in SCENES.items()
    ]
    drawn = shapes.textured_shapes(250, seed=SHAPES_SEED)
    for name in SHOWN_SHAPES:
        first = (drawn.labels == shapes.CLASSES.index(name)).nonzero()[0, 0]
        pictures.append(drawn.images[first].permute(1, 2, 0).contiguous())  # (32, 32, 3)
        shown = {"file": f"shape-{name}.png", "shows": f"textured shape: {name}", "class": None}
        described.append(shown)
    return torch.stack(pictures), described


def checked_images(pictures: Tensor) -> Tensor:
    """What a graph is compared on: the samples, textured shapes, random pixels; uint8 (N, H, W, 3)."""
    side = pictures.shape[1]
    drawn = shapes.textured_shapes(CHECKED["textured shapes"], seed=SHAPES_SEED + 1, size=side)
    generator = torch.Generator().manual_seed(0)
    size = (CHECKED["random pixels"], side, side, 3)
    noise = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    return torch.cat([pictures, drawn.images.permute(0, 2, 3, 1), noise])


def normalise(images: Tensor) -> Tensor:
    """As a network of CIFAR-10 wants them: uint8 (N, H, W, 3) -> float32 (N, 3, H, W)."""
    labels = torch.zeros(len(images), dtype=torch.int64)  # (N,), of no importance
    whole = ImageSet(
        name="cifar10", classes=CLASSES, mean=MEAN, std=STD, images=images, labels=labels
    )
    return whole.normalise(images)


# --- graphs ----------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """A network that takes images as they are."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: CifarNet) -> None:
        super().__init__()
        self.model = model
        scale = 1 / (255 * torch.tensor(STD))  # (3,)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", -255 * torch.tensor(MEAN) * scale)  # (3,)

    def normalise(self, image: Tensor) -> Tensor:
        return (image.float() * self.scale + self.shift).permute(0, 3, 1, 2)  # (1, 3, H, W)


class DenseGraph(_Graph):
    """image uint8 (1, H, W, 3) -> logits (1, classes)."""

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.normalise(image))


class MaskedGraph(_Graph):
    """image, threshold (1,) -> logits (1, classes); energy, z and mask, each (1, 1, h, w).

    The model has one hard mask, as the last step of one of its groups.
    """

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mask = only_mask(self.model)
        x = self.model.stem(self.normalise(image))  # (1, C, h, w)
        for number in range(1, len(self.model.settings.widths) + 1):
            for layer in self.model.get_submodule(f"group{number}").children():
                if layer is mask:
                    state = mask.compute(x)
                    kept = (state.logit < threshold).to(x.dtype)  # (1, 1, h, w)
                    x = x * kept  # (1, C, h, w)
                else:
                    x = layer(x)
        return self.model.classify(x), state.energy, state.logit, kept


class _Widen(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def export_network(model: CifarNet, *, side: int = 32) -> bytes:
    """A trained network as an ONNX file.

    Args:
        model: with no energy mask, or with a hard one after a group; it stays as it is.
        side: of the images, in pixels.

    Returns:
        The file. Inputs and outputs as in `DenseGraph` or `MaskedGraph`, by these names: image,
        threshold; logits, energy, z, mask.

    Raises:
        LookupError: onnxscript is not installed.
        ValueError: a soft mask, or weights that half precision does not hold exactly.
    """
    masked = bool(energy_masks(model))
    if masked and not only_mask(model).hard:
        raise ValueError("a threshold belongs to a hard mask, this one is soft: use hard=True")
    _needed("onnxscript")
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            half = layer.weight.detach().half()
            if not torch.equal(half.float(), layer.weight):
                raise ValueError(
                    "the weights are finer than half precision: runs.halve rounds them"
                )
            layer.weight = nn.Parameter(half, requires_grad=False)
            parametrize.register_parametrization(layer, "weight", _Widen(), unsafe=True)
    inputs = {"image": torch.zeros(1, side, side, 3, dtype=torch.uint8)}  # (1, H, W, 3)
    outputs = ["logits"]
    if masked:
        inputs["threshold"] = torch.zeros(1)
        outputs += ["energy", "z", "mask"]
    graph = MaskedGraph(model) if masked else DenseGraph(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter's own parts will change
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it would be without dynamo
    for part in (program.model, program.model.graph, *program.model.graph):
        part.metadata_props.clear()  # of the nodes they hold the paths of this machine
    file = io.BytesIO()
    program.save(file)  # type: ignore[arg-type]  # it writes to an open file, too
    return file.getvalue()


# --- checks ----------------------------------------------------------------------------------------


def run_graph(
    graph: bytes, images: Tensor, *, threshold: float | None = None
) -> dict[str, np.ndarray]:
    """The outputs of a graph for images uint8 (N, H, W, 3), by name, each with N rows.

    Args:
        graph: an ONNX file of `export_network`.
        images: one after the other.
        threshold: of a masked network; None for a dense one.

    Raises:
        LookupError: onnxruntime is not installed.
    """
    session = _needed("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    extra = {} if threshold is None else {"threshold": np.array([threshold], dtype=np.float32)}
    rows = [session.run(names, {"image": image[None].numpy()} | extra) for image in images]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


def largest_difference(model: CifarNet, graph: bytes, images: Tensor) -> float:
    """How far a graph's numbers are from torch's, over images uint8 (N, H, W, 3), at most.

    A token whose z lies within rounding of 0 may be kept by one and dropped by the other. So masks are
    compared away from 0, and logits under the mask of the graph.

    Raises:
        ValueError: further than `TOLERANCE`, another class first, or another mask.
    """
    masked = bool(energy_masks(model))
    found = run_graph(graph, images, threshold=0.0 if masked else None)
    with evaluating(model):
        if not masked:
            expected = {"logits": model(normalise(images))}  # (N, classes)
        else:
            mask = only_mask(model)
            with replaced_mask(mask, lambda m: torch.from_numpy(found["mask"])):
                expected = {"logits": model(normalise(images))}
            state = checks.state(mask)
            expected |= {"energy": state.energy, "z": state.logit}  # (N, 1, h, w) each
            away = state.logit.abs() > TOLERANCE
            if (torch.from_numpy(found["mask"]) != state.mask)[away].any():
                raise ValueError("the graph keeps other tokens than torch: do not publish it")
    difference = max(
        float(np.abs(found[name] - value.numpy()).max()) for name, value in expected.items()
    )
    same = (found["logits"].argmax(1) == expected["logits"].argmax(1).numpy()).all()
    if not (difference <= TOLERANCE and same):
        raise ValueError(f"the graph is {difference:.2g} from torch, more than {TOLERANCE:g}")
    return difference


def value_ranges(model: CifarNet, images: Tensor) -> dict[str, tuple[float, float]]:
    """From where to where z and energy go, outliers aside: for the page's slider and colours."""
    with evaluating(model):
        model(normalise(images))
    state = checks.state(only_mask(model))
    ranges = {}
    for name, values in {"z": state.logit, "energy": state.energy}.items():
        low, high = np.quantile(values.numpy(), [0.01, 0.99])
        ranges[name] = (float(np.floor(100 * low) / 100), float(np.ceil(100 * high) / 100))
    return ranges


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise LookupError(
            f"the export needs {package}: pip install -e '.[test]' brings it"
        ) from error
