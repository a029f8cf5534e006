"""Weight files: one network under every published naming scheme, wrapped, damaged and unknown files."""

import argparse
import io
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from physseg.structure_extractors.errors import WeightsError
from physseg.structure_extractors.superpoint.network import (
    Architecture,
    DetectorNetwork,
    grey_tensor,
    keypoint_probabilities,
)
from physseg.structure_extractors.superpoint.weights import FORMATS, _flatten, load_detector
from safetensors.torch import save as save_safetensors

from ...fuzzing import bounded, mutants, survives

WIDTHS = (4, 4, 6, 6, 8, 8, 10, 10)
HEAD = 12


def probability_maps(network: DetectorNetwork, grey: np.ndarray) -> np.ndarray:
    """Probabilities (B, H, W) of pictures (B, H, W) uint8."""
    return keypoint_probabilities(network, grey_tensor(grey, network.device)).numpy()


def plain_network(seed: int = 0, widths: tuple[int, ...] = WIDTHS, head_width: int = HEAD) -> dict[str, torch.Tensor]:
    """Weights of a network without normalisation, scaled so that a signal passes through: {'1a.weight': ..., ...}."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    outputs = (*widths, head_width, 65)
    units = ("1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b", "Pa", "Pb")
    for unit, inputs, channels in zip(units, (1, *outputs[:-1]), outputs, strict=True):
        kernel = 1 if unit == "Pb" else 3
        scale = (2.0 / (inputs * kernel * kernel)) ** 0.5
        state[f"{unit}.weight"] = torch.randn(channels, inputs, kernel, kernel, generator=generator) * scale
        state[f"{unit}.bias"] = torch.randn(channels, generator=generator) * 0.1
    return state


def norms(state: Mapping[str, torch.Tensor], eps: float, *, random: bool = False) -> dict[str, torch.Tensor]:
    """Batch normalisations to go with ``plain_network``: the identity for this epsilon, or random ones."""
    out = {}
    generator = torch.Generator().manual_seed(9)
    for key, bias in state.items():
        unit, part = key.split(".")
        if part == "bias":
            draw = [torch.rand(bias.shape, generator=generator) for _ in range(4)]
            out[f"{unit}.weight"] = 0.3 * draw[0] + 0.2 if random else torch.ones_like(bias)
            out[f"{unit}.bias"] = draw[1] - 0.5 if random else torch.zeros_like(bias)
            out[f"{unit}.running_mean"] = draw[2] - 0.5 if random else torch.zeros_like(bias)
            out[f"{unit}.running_var"] = 0.3 * draw[3] + 0.05 if random else torch.full_like(bias, 1 - eps)
    return out


def magic_leap(state, norm=None):
    return {f"conv{key}": value for key, value in state.items()}


def rpautrat(state, norm):
    def rename(key, kind):
        unit, part = key.split(".")
        place = (
            f"detector.{'ab'.index(unit[1])}"
            if unit[0] == "P"
            else f"backbone.{int(unit[0]) - 1}.{'ab'.index(unit[1])}"
        )
        return f"{place}.{kind}.{part}"

    return {rename(k, "conv"): v for k, v in state.items()} | {rename(k, "bn"): v for k, v in norm.items()}


def hugging_face(state, norm=None):
    def rename(key):
        unit, part = key.split(".")
        if unit[0] == "P":
            return f"keypoint_decoder.conv_score_{unit[1]}.{part}"
        return f"encoder.conv_blocks.{int(unit[0]) - 1}.conv_{unit[1]}.{part}"

    return {rename(key): value for key, value in state.items()}


def hugging_face_early(state, norm=None):
    return {
        f"keypoint_decoder.convS{key[1:]}" if key[0] == "P" else f"encoder.conv{key}": value
        for key, value in state.items()
    }


def eric_yyjau(state, norm):
    def rename(key, is_norm):
        unit, part = key.split(".")
        if unit[0] == "P":
            return f"{'bn' if is_norm else 'conv'}{unit}.{part}"
        index = {"a": 0, "b": 3}[unit[1]] + is_norm
        block = "inc.conv.conv" if unit[0] == "1" else f"down{int(unit[0]) - 1}.mpconv.1.conv"
        return f"{block}.{index}.{part}"

    return {rename(k, False): v for k, v in state.items()} | {rename(k, True): v for k, v in norm.items()}


SCHEMES = {
    "Magic Leap": (magic_leap, 0.0, 0.015),
    "rpautrat": (rpautrat, 1e-3, 0.005),
    "Hugging Face": (hugging_face, 0.0, 0.015),
    "Hugging Face (early)": (hugging_face_early, 0.0, 0.015),
    "eric-yyjau": (eric_yyjau, 1e-5, 0.015),
}


def pickled(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def grey_images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 40, 56), np.uint8)


def test_one_network_in_every_naming_scheme_gives_the_same_maps():
    state = plain_network()
    maps = {}
    for name, (scheme, eps, threshold) in SCHEMES.items():
        detector = load_detector(pickled(scheme(state, norms(state, eps))), where=name)
        assert (detector.format, detector.threshold) == (name, threshold)
        assert not detector.network.training
        maps[name] = probability_maps(detector.network, grey_images())
    first = maps["Magic Leap"]
    assert first.std() > 1e-3  # the map has something to differ in
    np.testing.assert_array_equal(maps["Hugging Face"], first)
    np.testing.assert_array_equal(maps["Hugging Face (early)"], first)
    for name in ("rpautrat", "eric-yyjau"):  # 1 - eps + eps is 1 up to the rounding of float32
        np.testing.assert_allclose(maps[name], first, rtol=2e-5, atol=1e-8)


def published_module(kind: str) -> torch.nn.Sequential:
    """The two published networks with batch normalisation, as a user would type them from the papers' code."""
    layers: list[torch.nn.Module] = []
    inputs = 1
    for index, channels in enumerate((*WIDTHS, HEAD)):
        conv = torch.nn.Conv2d(inputs, channels, 3, padding=1)
        if kind == "rpautrat":
            layers += [conv, torch.nn.ReLU(), torch.nn.BatchNorm2d(channels, eps=1e-3)]
        else:
            layers += [conv, torch.nn.BatchNorm2d(channels), torch.nn.ReLU()]
        if index in (1, 3, 5):
            layers.append(torch.nn.MaxPool2d(2))
        inputs = channels
    layers += [torch.nn.Conv2d(HEAD, 65, 1), torch.nn.BatchNorm2d(65, eps=1e-3 if kind == "rpautrat" else 1e-5)]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("name", ["rpautrat", "eric-yyjau"])
def test_random_normalisations_stand_where_the_published_networks_have_them(name):
    state = plain_network(1)
    norm = norms(state, 0.0, random=True)
    module = published_module(name)
    convs = [layer for layer in module if isinstance(layer, torch.nn.Conv2d)]
    batch_norms = [layer for layer in module if isinstance(layer, torch.nn.BatchNorm2d)]
    for unit, conv, bn in zip(dict.fromkeys(key.split(".")[0] for key in state), convs, batch_norms, strict=True):
        conv.load_state_dict({part: state[f"{unit}.{part}"] for part in ("weight", "bias")})
        parts = ("weight", "bias", "running_mean", "running_var")
        bn.load_state_dict({part: norm[f"{unit}.{part}"] for part in parts}, strict=False)
    grey = grey_images()
    with torch.no_grad():
        softmax = module.double()((torch.from_numpy(grey)[:, None] / 255).double()).softmax(dim=1)[:, :64]
    expected = softmax.reshape(2, 8, 8, 5, 7).permute(0, 3, 1, 4, 2).reshape(2, 40, 56)

    detector = load_detector(pickled(SCHEMES[name][0](state, norm)), where=name)
    np.testing.assert_allclose(probability_maps(detector.network.double(), grey), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3, "loss": 0.5},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {f"net.superpoint.{key}": value for key, value in state.items()}, "note": "text"},
        lambda state: {
            **state,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        lambda state: {**state, "convDa.weight": torch.zeros(256, 10, 3, 3), "descriptor_decoder.x": torch.zeros(2)},
    ],
    ids=["nested", "module prefix", "two prefixes", "optimizer", "descriptors"],
)
def test_wrapped_state_dicts_are_looked_through(name, wrap):
    scheme, eps, _ = SCHEMES[name]
    state = plain_network()
    bare = load_detector(pickled(scheme(state, norms(state, eps))), where=name).network.state_dict()
    wrapped = load_detector(pickled(wrap(scheme(state, norms(state, eps)))), where=name)
    assert wrapped.format == name
    for key, value in wrapped.network.state_dict().items():
        torch.testing.assert_close(value, bare[key], rtol=0, atol=0)


def test_safetensors_legacy_pickles_and_half_precision_are_read():
    state = magic_leap(plain_network())
    expected = load_detector(pickled(state), where="zip").network.state_dict()
    for data in (save_safetensors(state), pickled(state, _use_new_zipfile_serialization=False)):
        for key, value in load_detector(data, where="other").network.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    half = load_detector(save_safetensors({key: value.half() for key, value in state.items()}), where="half").network
    assert half.logits.conv.weight.dtype == torch.float32
    torch.testing.assert_close(half.logits.conv.weight, expected["logits.conv.weight"], rtol=1e-3, atol=1e-4)


OURS = Architecture(widths=WIDTHS, head_width=HEAD, order="conv-bn-relu", norm_logits=True)


@pytest.mark.parametrize(("told", "threshold"), [(None, 0.015), ({"by": "us"}, 0.015), ({"threshold": "0.04"}, 0.04)])
def test_our_own_weights_may_tell_their_threshold(told, threshold):
    data = save_safetensors(DetectorNetwork(OURS).state_dict(), told)
    assert load_detector(data, where="own").threshold == threshold
    size = int.from_bytes(data[:8], "little")
    if told is None:  # which safetensors takes for none
        header = data[8 : 8 + size].replace(b"{", b'{"__metadata__":null,', 1)
        data = len(header).to_bytes(8, "little") + header + data[8 + size :]
        assert load_detector(data, where="own").threshold == threshold


@pytest.mark.parametrize("text", ["none", "1", "-0.1", "nan", "inf"])
def test_a_threshold_that_is_none_is_named(text):
    data = save_safetensors(DetectorNetwork(OURS).state_dict(), {"threshold": text})
    with pytest.raises(WeightsError, match=rf"own: threshold in its metadata: expected a number in .*, got '{text}'"):
        load_detector(data, where="own")


def test_our_own_state_dict_loads_as_it_is():
    network = DetectorNetwork(OURS).eval()
    detector = load_detector(save_safetensors(network.state_dict()), where="own")
    assert detector.format == "physseg"
    assert detector.network.architecture == OURS
    np.testing.assert_array_equal(
        probability_maps(detector.network, grey_images()),
        probability_maps(network.to(memory_format=torch.channels_last), grey_images()),
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_the_published_widths_load(name):
    scheme, eps, _ = SCHEMES[name]
    state = plain_network(widths=(64, 64, 64, 64, 128, 128, 128, 128), head_width=256)
    network = load_detector(pickled(scheme(state, norms(state, eps))), where=name).network
    assert network.architecture.widths == Architecture().widths
    assert network.architecture.head_width == 256


def test_missing_keys_are_named_for_the_format_that_fits_best():
    state = plain_network()
    content = rpautrat(state, norms(state, 1e-3))
    del content["detector.1.bn.running_var"]
    with pytest.raises(
        WeightsError, match=r"w\.pth: looks like rpautrat weights, but lacks model\.detector\.1\.bn\.running_var"
    ):
        load_detector(pickled({"model": content}), where="w.pth")


def test_unknown_weights_name_what_was_found_and_what_is_read():
    with pytest.raises(WeightsError, match=r"found layer1\.weight, fc\.bias") as caught:
        load_detector(pickled({"layer1.weight": torch.zeros(2), "fc": {"bias": torch.zeros(2)}}), where="w.pth")
    for weight_format in FORMATS:
        assert weight_format.name in str(caught.value)


def test_two_detectors_in_one_file_are_ambiguous():
    state = magic_leap(plain_network())
    with pytest.raises(WeightsError, match=r"expected one SuperPoint detector, got Magic Leap at 'ema\.' and"):
        load_detector(pickled({"ema": state, "model": state}), where="w.pth")


def test_shapes_that_do_not_fit_are_refused_before_a_network_of_that_size_is_made():
    thin = dict.fromkeys(("conv1a.weight", "conv1b.weight"), torch.zeros(2_000_000, 1, 1, 1))
    with pytest.raises(WeightsError, match=r"should have the shape \(2000000, 1, 3, 3\)"):
        load_detector(pickled(magic_leap(plain_network()) | thin), where="w.pth")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conv1a.weight", torch.zeros(4, 3, 3, 3), r"blocks\.0\.conv\.weight should have the shape \(4, 1, 3, 3\)"),
        ("conv2a.weight", torch.zeros(6, 9, 3, 3), r"blocks\.2\.conv\.weight should have the shape \(6, 4, 3, 3\)"),
        ("convPb.weight", torch.zeros(64, HEAD, 1, 1), r"logits\.conv\.weight should have the shape \(65, 12, 1, 1\)"),
        ("conv1b.bias", torch.zeros(9), r"blocks\.1\.conv\.bias should have the shape \(4,\), got \(9,\)"),
        ("conv3a.weight", torch.tensor(1.0), r"blocks\.4\.conv\.weight should have the shape"),
        ("conv1b.bias", torch.full((4,), float("nan")), r"blocks\.1\.conv\.bias holds values that are not finite"),
    ],
)
def test_weights_that_fit_no_detector_are_named(key, value, message):
    with pytest.raises(WeightsError, match=message):
        load_detector(pickled(magic_leap(plain_network()) | {key: value}), where="w.pth")


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>", "21 bytes that begin with b'<!DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begin with b'version https://git"),
        (pickled({"args": argparse.Namespace(lr=1)}), "an object of class argparse.Namespace"),
        (pickled(magic_leap(plain_network()))[:-2000], "damaged or of another kind"),
        (save_safetensors(magic_leap(plain_network()))[:-2000], "damaged or of another kind"),
        (pickled([1, 2]), "no tensors at all"),
    ],
)
def test_files_of_another_kind_say_what_they_are(data, got):
    with pytest.raises(WeightsError, match=got):
        load_detector(data, where="w.pth")


def deflated(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def test_files_that_claim_more_than_they_have_are_refused():
    state = magic_leap(plain_network())
    endless, nested = dict(state), dict(state)
    endless["again"] = endless
    for _ in range(300):
        nested = {"a": nested, "b": nested}
    repeated = torch.zeros(1).expand(10**6, 10**6)
    for content in (endless, nested, state | {"conv1b.bias": repeated}):
        with bounded(), pytest.raises(WeightsError, match="damaged or of another kind"):
            load_detector(pickled(content), where="w.pth")
    for content in (endless, nested):  # the error above might be one of too little memory
        with pytest.raises(ValueError, match="more than 10000 entries"):
            list(_flatten(content))
    with pytest.raises(WeightsError, match="damaged or of another kind"):
        load_detector(deflated(pickled(state)), where="w.pth")


def test_weights_of_64_bits_are_read_as_float32_where_they_fit():
    state = magic_leap(plain_network())
    wide = {key: value.double() for key, value in state.items()}
    for ours, its in zip(
        *(load_detector(pickled(each), where="w").network.parameters() for each in (state, wide)), strict=True
    ):
        torch.testing.assert_close(ours, its, rtol=0, atol=0)
    for unfit in (torch.full_like(wide["conv1b.bias"], 1e300), wide["conv1b.bias"].to(torch.complex64)):
        with pytest.raises(WeightsError, match=r"conv\.bias holds values that are not finite numbers of float32"):
            load_detector(pickled(wide | {"conv1b.bias": unfit}), where="w.pth")


def test_damaged_files_are_read_or_refused():
    for save in (pickled, save_safetensors):
        good = save(magic_leap(plain_network()))
        for number, data in enumerate(mutants(good, seed=0, count=40)):
            survives(lambda data=data: load_detector(data, where="w.pth"), f"{save.__name__} {number}")


def test_loading_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    with pytest.raises(WeightsError, match="an object of class"):
        load_detector(pickled({"conv1a.weight": Bomb()}), where="w.pth")
    assert not (tmp_path / "boom").exists()
