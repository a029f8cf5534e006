"""SuperPoint weights from a file: the published naming schemes, recognised by their keys, into one network.

A file is a PyTorch pickle (read with `weights_only=True`, so it cannot run code) or safetensors. Nested dictionaries
and prefixes such as `model_state_dict` or `module.` are looked through; descriptor weights, optimiser state and
anything else are ignored; widths follow from the shapes. Nothing is ever downloaded.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ...common.documents import MALFORMED
from ...common.regular_files import check_parts
from ...common.text import preview
from ..errors import WeightsError
from .network import Architecture, DetectorNetwork, Order

UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, MemoryError, AssertionError)
MAX_ENTRIES = 10_000
"""Tensors and dictionaries in a file, each as often as it is named; a detector with its optimiser has hundreds."""
UNITS = (*(f"blocks.{index}" for index in range(8)), "head", "logits")  # parts of DetectorNetwork, input to output


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """One naming scheme and what it implies. `conv{12}{ab}` stands for conv1a, conv1b, conv2a, conv2b."""

    name: str
    convs: tuple[str, ...]  # keys of the units' convolutions, in the order of UNITS, without ".weight" and ".bias"
    norms: tuple[str, ...] = ()  # keys of the units' batch normalisation, the logits' too; () = none
    order: Order = "conv-relu"
    norm_eps: float = 1e-5
    threshold: float = 0.015  # detection threshold that the scheme's authors use

    def keys(self) -> dict[str, str]:
        """Map each needed key of the file to the network's own name for it."""
        norm_parts = ("weight", "bias", "running_mean", "running_var")
        return {
            f"{theirs}.{part}": f"{ours}.{layer}.{part}"
            for layer, patterns, parts in (("conv", self.convs, ("weight", "bias")), ("norm", self.norms, norm_parts))
            for ours, theirs in zip(UNITS, _spelt_out(patterns), strict=bool(patterns))
            for part in parts
        }


def _spelt_out(patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        texts = re.split("[{}]", pattern)  # every second one is a choice of characters
        yield from map("".join, product(*(text if index % 2 else [text] for index, text in enumerate(texts))))


FORMATS = (
    WeightFormat(name="Magic Leap", convs=("conv{1234P}{ab}",)),
    WeightFormat(
        name="rpautrat",
        convs=("backbone.{0123}.{01}.conv", "detector.{01}.conv"),
        norms=("backbone.{0123}.{01}.bn", "detector.{01}.bn"),
        order="conv-relu-bn",
        norm_eps=1e-3,
        threshold=0.005,
    ),
    WeightFormat(
        name="Hugging Face", convs=("encoder.conv_blocks.{0123}.conv_{ab}", "keypoint_decoder.conv_score_{ab}")
    ),
    WeightFormat(name="Hugging Face (early)", convs=("encoder.conv{1234}{ab}", "keypoint_decoder.convS{ab}")),
    WeightFormat(
        name="eric-yyjau",
        convs=("inc.conv.conv.{03}", "down{123}.mpconv.1.conv.{03}", "convP{ab}"),
        norms=("inc.conv.conv.{14}", "down{123}.mpconv.1.conv.{14}", "bnP{ab}"),
        order="conv-bn-relu",
    ),
    # A network's own state dict, as a training of our own saves it.
    WeightFormat(
        name="physseg",
        convs=tuple(f"{unit}.conv" for unit in UNITS),
        norms=tuple(f"{unit}.norm" for unit in UNITS),
        order="conv-bn-relu",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Detector:
    """A network in evaluation mode, and what its file told."""

    network: DetectorNetwork
    format: str  # name of the WeightFormat
    threshold: float  # default detection threshold: the file's own, or the format's


def load_detector(data: bytes, *, where: str) -> Detector:
    """The detector of a weight file's bytes; `where` names it. Raises WeightsError unless they hold exactly one."""
    weights, found = recognise(_tensors(data, where), where=where)
    network = build_network(weights, found, where=where).to(memory_format=torch.channels_last)
    threshold = _own_threshold(data, found.threshold, where) if found.name == "physseg" else found.threshold
    return Detector(network=network, format=found.name, threshold=threshold)


def recognise(tensors: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], WeightFormat]:
    """Find the one detector among `tensors`: its weights under the names of `DetectorNetwork`, and its format.

    A format matches where all its keys stand behind one prefix, possibly empty.
    """
    matches = []
    incomplete: dict[str, list[str]] = {}
    for candidate in FORMATS:
        keys = candidate.keys()
        first = next(iter(keys))
        for prefix in [key.removesuffix(first) for key in tensors if f".{key}".endswith(f".{first}")]:
            missing = [prefix + key for key in keys if prefix + key not in tensors]
            if missing:
                incomplete[candidate.name] = missing
            else:
                matches.append((candidate, prefix))
    if len(matches) == 1:
        found, prefix = matches[0]
        return {ours: tensors[prefix + theirs] for theirs, ours in found.keys().items()}, found
    names = ", ".join(candidate.name for candidate in FORMATS)
    if matches:
        problem = "expected one SuperPoint detector, got " + " and ".join(f"{f.name} at '{p}'" for f, p in matches)
    elif incomplete:
        name, missing = min(incomplete.items(), key=lambda item: len(item[1]))
        problem = f"looks like {name} weights, but lacks {preview(missing)}"
    else:
        problem = f"expected the weights of a SuperPoint detector, found {preview(tensors or ['no tensors at all'])}"
    raise WeightsError(f"{where}: {problem}", hint=f"formats read: {names}")


def build_network(weights: Mapping[str, Tensor], found: WeightFormat, *, where: str) -> DetectorNetwork:
    """The network that `weights` (named as ours) fit, float32, in evaluation, widths by shapes. Raises WeightsError."""
    widths = [(*weights[f"{unit}.conv.weight"].shape, 1)[0] for unit in UNITS]  # 1 if it has no dimension at all
    architecture = Architecture(
        widths=tuple(widths[:8]),
        head_width=widths[8],
        order=found.order,
        norm_eps=found.norm_eps,
        norm_logits=bool(found.norms),
    )
    with torch.device("meta"):  # without memory: shapes that do not fit may ask for any amount
        expected = DetectorNetwork(architecture).state_dict()
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            wanted, got = tuple(expected[key].shape), tuple(value.shape)
            raise WeightsError(f"{where}: {key} should have the shape {wanted}, got {got}")
        if not value.is_floating_point() or not torch.isfinite(value.float()).all():  # of float64, some are too large
            raise WeightsError(f"{where}: {key} holds values that are not finite numbers of float32")
    network = DetectorNetwork(architecture)
    network.load_state_dict(network.state_dict() | {key: value.float() for key, value in weights.items()}, strict=True)
    return network.eval().requires_grad_(False)


def _tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """All tensors of a file under their dotted keys."""
    got = f"{len(data)} bytes that begin with {data[:20]!r}"
    try:
        if data[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return load_safetensors(data)
        if data.startswith((b"\x80", b"PK")):  # pickle, zip
            if data.startswith(b"PK"):
                check_parts(zipfile.ZipFile(io.BytesIO(data)), len(data))
            return dict(_flatten(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)))
    except (*MALFORMED, SafetensorError, *UNREADABLE) as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        got = f"an object of class {refused[1]} in it" if refused else "a file that is damaged or of another kind"
    raise WeightsError.mismatch(
        where,
        "a safetensors file or a PyTorch file of nothing but tensors",
        got,
        hint="fetch the file again; or, if you trust it, load it elsewhere and torch.save its state dict alone",
    )


def _own_threshold(data: bytes, default: float, where: str) -> float:
    """What the metadata of a readable safetensors file tell, or else the default; raises WeightsError."""
    metadata = None
    if data[8:9] == b"{":
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    text = (metadata or {}).get("threshold", str(default))
    with suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    hint = "save the tensors without metadata, and set superpoint.threshold"
    raise WeightsError.mismatch(f"{where}: threshold in its metadata", "a number in [0, 1)", repr(text), hint=hint)


def _flatten(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Not by recursion, and so many: a file may nest, or hold itself, without end."""
    waiting = [("", content)]
    for _ in range(MAX_ENTRIES):
        if not waiting:
            return
        prefix, value = waiting.pop()
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"{prefix} claims more numbers than it has")
            yield prefix, value
        elif isinstance(value, Mapping):
            children = [(f"{prefix}.{key}" if prefix else str(key), child) for key, child in value.items()]
            waiting += reversed(children)
    raise ValueError(f"more than {MAX_ENTRIES} entries")
