"""SuperPoint weights from a file: the published naming schemes, recognised by their keys, into one network.

A file is a PyTorch pickle (read with `weights_only=True`, so it cannot run code) or safetensors. Nested dictionaries
and prefixes such as `model_state_dict` or `module.` are looked through; descriptor weights, optimiser state and
anything else are ignored; widths follow from the shapes. Nothing is ever downloaded.
"""

import io
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ...common.text import preview
from ..errors import WeightsError
from .network import NUM_LOGITS, Architecture, DetectorNetwork, Order

UNITS = (*(f"blocks.{index}" for index in range(8)), "head", "logits")  # parts of DetectorNetwork, input to output


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFormat:
    """One naming scheme and what it implies."""

    name: str
    convs: tuple[str, ...]  # key of each unit's convolution, in the order of UNITS, without ".weight" and ".bias"
    norms: tuple[str, ...] = ()  # key of each unit's batch normalisation, the logits' too; () = none
    order: Order = "conv-relu"
    norm_eps: float = 1e-5
    threshold: float = 0.015  # detection threshold that the scheme's authors use

    def keys(self) -> dict[str, str]:
        """Map each needed key of the file to the network's own name for it."""
        convs = {
            f"{theirs}.{part}": f"{ours}.conv.{part}"
            for ours, theirs in zip(UNITS, self.convs, strict=True)
            for part in ("weight", "bias")
        }
        norms = {
            f"{theirs}.{part}": f"{ours}.norm.{part}"
            for ours, theirs in zip(UNITS, self.norms, strict=bool(self.norms))
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        return convs | norms


FORMATS = (
    WeightFormat(
        name="Magic Leap",
        convs=_words("conv1a conv1b conv2a conv2b conv3a conv3b conv4a conv4b convPa convPb"),
    ),
    WeightFormat(
        name="rpautrat",
        convs=_words(
            """backbone.0.0.conv backbone.0.1.conv backbone.1.0.conv backbone.1.1.conv
            backbone.2.0.conv backbone.2.1.conv backbone.3.0.conv backbone.3.1.conv detector.0.conv detector.1.conv"""
        ),
        norms=_words(
            """backbone.0.0.bn backbone.0.1.bn backbone.1.0.bn backbone.1.1.bn
            backbone.2.0.bn backbone.2.1.bn backbone.3.0.bn backbone.3.1.bn detector.0.bn detector.1.bn"""
        ),
        order="conv-relu-bn",
        norm_eps=1e-3,
        threshold=0.005,
    ),
    WeightFormat(
        name="Hugging Face",
        convs=_words(
            """encoder.conv_blocks.0.conv_a encoder.conv_blocks.0.conv_b
            encoder.conv_blocks.1.conv_a encoder.conv_blocks.1.conv_b
            encoder.conv_blocks.2.conv_a encoder.conv_blocks.2.conv_b
            encoder.conv_blocks.3.conv_a encoder.conv_blocks.3.conv_b
            keypoint_decoder.conv_score_a keypoint_decoder.conv_score_b"""
        ),
    ),
    WeightFormat(
        name="Hugging Face (early)",
        convs=_words(
            """encoder.conv1a encoder.conv1b encoder.conv2a encoder.conv2b encoder.conv3a encoder.conv3b
            encoder.conv4a encoder.conv4b keypoint_decoder.convSa keypoint_decoder.convSb"""
        ),
    ),
    WeightFormat(
        name="eric-yyjau",
        convs=_words(
            """inc.conv.conv.0 inc.conv.conv.3 down1.mpconv.1.conv.0 down1.mpconv.1.conv.3
            down2.mpconv.1.conv.0 down2.mpconv.1.conv.3 down3.mpconv.1.conv.0 down3.mpconv.1.conv.3 convPa convPb"""
        ),
        norms=_words(
            """inc.conv.conv.1 inc.conv.conv.4 down1.mpconv.1.conv.1 down1.mpconv.1.conv.4
            down2.mpconv.1.conv.1 down2.mpconv.1.conv.4 down3.mpconv.1.conv.1 down3.mpconv.1.conv.4 bnPa bnPb"""
        ),
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
    threshold: float  # the format's default detection threshold


def load_detector(data: bytes, *, where: str) -> Detector:
    """Make the detector of a weight file.

    Args:
        data: The bytes of the file.
        where: Name of the file in messages.

    Raises:
        WeightsError: The file does not read, or does not hold exactly one detector.
    """
    weights, found = recognise(_tensors(data, where), where=where)
    network = build_network(weights, found, where=where).to(memory_format=torch.channels_last)
    return Detector(network=network, format=found.name, threshold=found.threshold)


def recognise(tensors: Mapping[str, Tensor], *, where: str) -> tuple[dict[str, Tensor], WeightFormat]:
    """Find the one detector among `tensors`: its weights under the names of `DetectorNetwork`, and its format.

    A format matches where all its keys stand behind one prefix, possibly empty.
    """
    matches = []
    incomplete: dict[str, list[str]] = {}
    for candidate in FORMATS:
        keys = candidate.keys()
        first = f"{candidate.convs[0]}.weight"
        for prefix in (key[: -len(first)] for key in tensors if key == first or key.endswith("." + first)):
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
    """Make the network that `weights` (named as ours) fit, in float32 and evaluation mode."""
    _check_shapes(weights, where=where)
    outputs = [weights[f"{unit}.conv.weight"].shape[0] for unit in UNITS]
    architecture = Architecture(
        widths=tuple(outputs[:8]),
        head_width=outputs[8],
        order=found.order,
        norm_eps=found.norm_eps,
        norm_logits=bool(found.norms),
    )
    network = DetectorNetwork(architecture)
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict(counters | {key: value.float() for key, value in weights.items()}, strict=True)
    return network.eval().requires_grad_(False)


def _check_shapes(weights: Mapping[str, Tensor], *, where: str) -> None:
    """Each convolution takes what the one before gives, from 1 grey channel to 65 logits; all values are finite."""
    inputs = 1
    for unit in UNITS:
        kernel = 1 if unit == "logits" else 3
        shape = tuple(weights[f"{unit}.conv.weight"].shape)
        outputs = NUM_LOGITS if unit == "logits" else (shape[0] if shape else 0)
        expected: dict[str, tuple[int, ...]] = {f"{unit}.conv.weight": (outputs, inputs, kernel, kernel)}
        expected |= {key: (outputs,) for key in weights if key.startswith(f"{unit}.") and key not in expected}
        for key, wanted in expected.items():
            if tuple(weights[key].shape) != wanted:
                got = tuple(weights[key].shape)
                raise WeightsError(f"{where}: {key} should have the shape {wanted}, got {got}")
            if not torch.isfinite(weights[key]).all():
                raise WeightsError(f"{where}: {key} holds values that are not finite")
        inputs = outputs


def _tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """All tensors of a file under their dotted keys."""
    safetensors = data[8:9] == b"{"  # eight bytes of length, then JSON
    if not safetensors and data[:1] != b"\x80" and data[:2] != b"PK":  # pickle, zip
        raise _unreadable(where, f"{len(data)} bytes that begin with {data[:20]!r}")
    try:
        if safetensors:
            return load_safetensors(data)
        return dict(_flatten(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        got = f"an object of class {refused[1]} in it" if refused else "a file that is damaged or of another kind"
        raise _unreadable(where, got) from error


def _unreadable(where: str, got: str) -> WeightsError:
    return WeightsError.mismatch(
        where,
        "a safetensors file or a PyTorch file of nothing but tensors",
        got,
        hint="fetch the file again; or, if you trust it, load it elsewhere and torch.save its state dict alone",
    )


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
