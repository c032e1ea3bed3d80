"""ConvNet-D: sizes, the fused block against PyTorch's own layers, and seeding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import UsageError
from potstill.networks import NETWORKS, arguments_of, build_network, check_network, identity
from potstill.networks.convnet import ConvNet, default_depth, norm_relu_pool
from potstill.spec import DatasetSpec, LabelledDataset


def spec_of(shape: tuple[int, int, int], num_classes: int) -> DatasetSpec:
    mean, classes = (0.5,) * shape[0], tuple(str(k) for k in range(num_classes))
    return DatasetSpec("any", shape, classes, mean, mean, mirror=True, fingerprint="any")


def test_convnet3_has_the_parameters_of_the_literature() -> None:
    """320,010 at 3x32x32 and 10 classes.

    Convolutions 3*128*9 + 128 = 3,584 and twice 128*128*9 + 128 = 147,584; norms 3 * 2 * 128 = 768; maps of 4x4
    make 128*16 = 2,048 features, so the classifier has 2,048*10 + 10 = 20,490.
    """
    network = build_network("convnet3", spec_of((3, 32, 32), 10), seed=0)
    assert sum(p.numel() for p in network.parameters()) == 3584 + 2 * 147_584 + 768 + 20_490 == 320_010
    assert not list(network.buffers())


@pytest.mark.parametrize(
    ("name", "shape", "depth", "width"),
    [
        ("convnet", (3, 32, 32), 3, 2048),
        ("convnet", (1, 28, 28), 3, 2048),  # padded to 32
        ("convnet", (3, 28, 28), 3, 128 * 3 * 3),
        ("convnet", (3, 64, 64), 4, 2048),
        ("convnet", (1, 64, 64), 4, 2048),  # padded to 68
        ("convnet", (3, 16, 16), 3, 128 * 2 * 2),
        ("convnet", (1, 8, 8), 2, 128 * 2 * 2),
        ("convnet", (3, 15, 33), 2, 128 * 3 * 8),
        ("convnet3", (3, 64, 64), 3, 128 * 8 * 8),
        ("convnet4", (3, 32, 32), 4, 128 * 2 * 2),
    ],
)
def test_feature_width_is_what_embed_gives(name: str, shape: tuple[int, int, int], depth: int, width: int) -> None:
    network = build_network(name, spec_of(shape, 7), seed=0)
    x = torch.zeros(2, *shape)
    maps = network.maps(x)
    assert len(maps) == depth
    assert network.embed(x).shape == (2, network.feature_width) == (2, width)
    assert network(x).shape == (2, 7)
    assert torch.equal(network.embed(x), maps[-1].after.flatten(1))


@pytest.mark.parametrize(
    ("side", "depth"),
    [(1, 1), (2, 1), (4, 1), (8, 2), (15, 2), (16, 3), (28, 3), (31, 3), (32, 3), (64, 4), (96, 4), (128, 5)],
)
def test_default_depth(side: int, depth: int) -> None:
    """Down to 2 pixels below side 32, to 4 from there on."""
    assert default_depth(side) == depth


@pytest.mark.parametrize(("side", "depth"), [(8, 4), (8, 0), (15, 4), (32, 6)])
def test_network_too_deep_for_the_image_is_refused_with_the_remedy(side: int, depth: int) -> None:
    deepest = {8: 3, 15: 3, 32: 5}[side]
    with pytest.raises(UsageError, match=rf"depth={depth} at image side {side}: valid are 1..{deepest} .*use depth "):
        ConvNet((3, side, side), 10, width=4, depth=depth)
    ConvNet((3, side, side), 10, width=4, depth=deepest)


def test_deepest_network_still_tells_images_apart(seeded: torch.Generator) -> None:
    """At one depth more the last norm would see one pixel, and every image would give the same features."""
    network = ConvNet((3, 15, 15), 10, width=8, depth=3)
    features = network.embed(torch.randn(4, 3, 15, 15, generator=seeded))
    assert features.var(dim=0).max() > 1e-3


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 2), (9, 4)], ids=str)
def test_fused_block_equals_the_layers_of_pytorch(size: tuple[int, int], seeded: torch.Generator) -> None:
    x = torch.randn(3, 4, *size, generator=seeded, dtype=torch.float64) * 3 + 2
    weight, bias = torch.randn(2, 4, generator=seeded, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    found = norm_relu_pool(*tensors)
    expected = F.avg_pool2d(F.relu(F.instance_norm(x, weight=weight, bias=bias)), 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(found.shape, generator=seeded, dtype=torch.float64)
    gradients = (torch.autograd.grad((out * cotangent).sum(), tensors) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_fused_block_takes_statistics_of_half_precision_maps_in_fp32(seeded: torch.Generator) -> None:
    """With a mean of 64 and a deviation of 1, bf16 sums (3 digits) would be off by whole deviations."""
    x = (torch.randn(2, 3, 32, 32, generator=seeded) + 64).bfloat16()
    found = norm_relu_pool(x, torch.ones(3), torch.zeros(3))
    expected = F.avg_pool2d(F.relu(F.instance_norm(x.double())), 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


def test_network_is_the_published_chain_of_layers(toy_colour: LabelledDataset, seeded: torch.Generator) -> None:
    network = build_network("convnet", toy_colour.spec, seed=3)
    x = expected = torch.randn(2, 3, 16, 16, generator=seeded)
    with torch.no_grad():
        for block in network.blocks:  # type: ignore[union-attr]
            expected = F.conv2d(expected, block.conv.weight, block.conv.bias, padding=1)
            expected = F.group_norm(expected, 128, block.norm_weight, block.norm_bias)
            expected = F.avg_pool2d(F.relu(expected), 2)
        torch.testing.assert_close(network.embed(x), expected.flatten(1), rtol=1e-4, atol=1e-5)
        logits = F.linear(expected.flatten(1), network.classifier.weight, network.classifier.bias)
        torch.testing.assert_close(network(x), logits, rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_do_not_influence_each_other(seeded: torch.Generator) -> None:
    """What allows a batch to be cut into chunks, also while training."""
    network = ConvNet((3, 8, 8), 4, width=8).train()
    assert not network.couples_batch
    x = torch.randn(3, 3, 8, 8, generator=seeded, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[1].sum(), x)
    assert gradient[1].abs().max() > 0
    assert not gradient[0].any() and not gradient[2].any()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_built_from_its_seed_alone(name: str) -> None:
    spec = spec_of((1, 28, 28), 3)
    torch.manual_seed(1)
    first = build_network(name, spec, seed=5).state_dict()
    torch.manual_seed(2)
    again = build_network(name, spec, seed=5).state_dict()
    other = build_network(name, spec, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_building_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    build_network("convnet", spec_of((1, 8, 8), 3), seed=5)
    assert torch.equal(torch.rand(4), expected)


def test_weights_start_as_pytorch_starts_them() -> None:
    """Uniform in +-1/sqrt(fan in), norms at one and zero: the initialisation behind the published numbers."""
    network = build_network("convnet", spec_of((3, 16, 16), 10), seed=0)
    for weight, fan_in in ((network.blocks[1].conv.weight, 128 * 9), (network.classifier.weight, 512)):  # type: ignore[index,union-attr]
        bound = fan_in**-0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert all(b.norm_weight.eq(1).all() and b.norm_bias.eq(0).all() for b in network.blocks)  # type: ignore[union-attr]


def test_unknown_network_is_refused_with_the_known(toy_dataset: LabelledDataset) -> None:
    with pytest.raises(UsageError, match=r"unknown network 'convent': known are .*convnet, convnet3"):
        build_network("convent", toy_dataset.spec, seed=0)


# --- arguments in the name


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Width w, depth d at 3x32x32: convolutions 27w + w and (d - 1)(9w^2 + w), norms 2dw, classifier of w maps.
        ("convnet:width=64", 28 * 64 + 2 * (9 * 64**2 + 64) + 6 * 64 + 64 * 16 * 10 + 10),
        ("convnet:depth=4", 28 * 128 + 3 * (9 * 128**2 + 128) + 8 * 128 + 128 * 4 * 10 + 10),
        ("convnet:norm=batch", 320_010),
        ("convnet:norm=group,pool=max", 320_010),
        ("convnet:norm=none", 320_010 - 768),
        ("convnet:", 320_010),
    ],
)
def test_arguments_in_a_name_shape_the_convnet(name: str, expected: int) -> None:
    network = build_network(name, spec_of((3, 32, 32), 10), seed=0)
    assert parameters(network) == expected
    assert network.couples_batch == ("batch" in name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnet:dept=4", r"'dept=4' is no argument of convnet, which takes width=, depth=, norm=, pool="),
        ("convnet:depth", r"'depth' is no argument of convnet"),
        ("convnet:depth=four", r"depth=four: need a whole number of at least 1"),
        ("convnet:width=0", r"width=0: need a whole number of at least 1"),
        ("lenet:width=3", r"'width=3' is no argument of lenet, which takes no arguments"),
        ("convnet:norm=layer", r"norm='layer': use one of instance, batch, group, none"),
        ("convnet:pool=sum", r"pool='sum': use one of average, max"),
        ("convnet:norm=group,width=6", r"width=6: group norm has 4 groups and needs a multiple of 4"),
        ("vit:width=100", r"width=100: vit has 3 heads and needs a multiple of 3"),
        (nn.Linear(2, 2), r"network of type Linear: give a name, or where its factory is"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        build_network(name, spec_of((3, 32, 32), 10), seed=0)
    assert "\n" not in str(refused.value)


def test_arguments_are_known_with_their_defaults() -> None:
    assert arguments_of("convnet") == {"width": 128, "depth": None, "norm": "instance", "pool": "average"}
    assert arguments_of("lenet") == {}


# --- the other networks


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        # Published, at ten classes: LeNet-5 61,706; ResNet-18 with a CIFAR stem 11,173,962; DenseNet-121's 7,978,856
        # of ImageNet without the 7x7 stem and its norm, its 1000 classes; VGG-11 with norms 9,231,114.
        ("lenet", (1, 28, 28), 61_706),
        ("lenet", (3, 32, 32), 62_006),
        ("resnet18", (3, 32, 32), 11_173_962),
        ("densenet121", (3, 32, 32), 7_978_856 - 40 * 192 - 128 - 1_025_000 + 10_250),
        ("vgg11", (3, 32, 32), 9_231_114),
        ("vgg11:norm=batch", (3, 32, 32), 9_231_114),
        # Derived: 3072*128 + 128, 128*128 + 128, 128*10 + 10.
        ("mlp", (3, 32, 32), 393_344 + 16_512 + 1_290),
        # Derived: 75*128 + 128, 25*128*192 + 192, 9*192*256 + 256, 9*256*192 + 192, 9*192*192 + 192, 3072*10 + 10.
        ("alexnet", (3, 32, 32), 9_728 + 614_592 + 442_624 + 442_560 + 331_968 + 30_730),
        # Derived: patches 48*192 + 192, positions 64*192, six layers of norms 4*192, 4 * 192^2 + 4*192, 2 * 2 * 192^2 +
        # 3*192, the last norm 2*192 and 1,930.
        ("vit", (3, 32, 32), 9_408 + 12_288 + 6 * (768 + 147_456 + 768 + 147_456 + 576) + 384 + 1_930),
    ],
)
def test_parameters_are_as_many_as_published_or_derived(name: str, shape: tuple[int, int, int], expected: int) -> None:
    assert parameters(build_network(name, spec_of(shape, 10), seed=0)) == expected


def test_densenet_of_growth_12_has_a_million_parameters() -> None:
    """By the rule: a layer on c channels has 2c + 48c + 96 + 48*9*12, a transition 2c + c * c/2."""
    total, channels = 27 * 24, 24
    for i, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            total += 2 * channels + 48 * channels + 96 + 48 * 9 * 12
            channels += 12
        if i < 3:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    total += 2 * channels + channels * 10 + 10
    assert parameters(build_network("densenet121_k12", spec_of((3, 32, 32), 10), seed=0)) == total == 1_000_618


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"convnet3", "densenet121", "resnet18"}))
def test_every_network_takes_the_sizes_of_the_paper(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, spec_of(shape, 5), seed=0).eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, maps = network.embed(x), network.maps(x)
        assert features.shape == (2, network.feature_width)
        assert torch.equal(network(x), network.classifier(features))
    assert features.std(dim=0).max() > 0, "two images look the same"
    assert all(m.before.dim() == m.after.dim() == 4 and len(m.before) == 2 for m in maps)
    assert all(m.before.shape[2] in (m.after.shape[2], 2 * m.after.shape[2], 2 * m.after.shape[2] + 1) for m in maps)


def test_maps_before_pooling_are_those_of_cafe(seeded: torch.Generator) -> None:
    """ConvNet-3 at 32 pixels: activations of 32, 16 and 8 pixels, then the last pooled map of 4."""
    network = build_network("convnet", spec_of((3, 32, 32), 10), seed=0)
    x = torch.randn(2, 3, 32, 32, generator=seeded)
    maps = network.maps(x)
    assert [m.before.shape[2] for m in maps] == [32, 16, 8] and maps[-1].after.shape[2] == 4
    for block, given, found in zip(network.blocks, (x, maps[0].after, maps[1].after), maps, strict=True):  # type: ignore[arg-type]
        by_hand = F.instance_norm(F.conv2d(given, block.conv.weight, block.conv.bias, padding=1))
        torch.testing.assert_close(found.before, F.relu(by_hand), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.after, F.avg_pool2d(found.before, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.embed(x), maps[-1].after.flatten(1), rtol=1e-4, atol=1e-5)


def test_one_channel_images_are_framed_as_published() -> None:
    """Padding 3 in the first convolution: spectrograms of 64x64 have maps of 68, 34, 17 and 8, and features of 4x4."""
    network = build_network("convnet4", spec_of((1, 64, 64), 8), seed=0)
    maps = network.maps(torch.zeros(1, 1, 64, 64))
    assert [m.before.shape[2] for m in maps] == [68, 34, 17, 8] and network.feature_width == 128 * 4 * 4


@pytest.mark.parametrize("name", ["alexnet", "lenet", "vit"])
def test_images_too_small_for_a_network_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"network {name} at 3x3: "):
        build_network(name, spec_of((3, 3, 3), 2), seed=0)


# --- networks of one's own

OWN = """
from torch import nn

def good(shape, num_classes):
    layers = nn.Linear(shape[0] * shape[1] * shape[2], 7), nn.ReLU(), nn.Linear(7, num_classes)
    return nn.Sequential(nn.Flatten(), *layers)

def normed(shape, num_classes):
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes))

def softmax(shape, num_classes):
    return nn.Sequential(good(shape, num_classes), nn.Softmax(1))

def other_classes(shape, num_classes):
    return good(shape, num_classes + 1)

def no_module(shape, num_classes):
    return "a module"

def broken(shape, num_classes):
    raise ValueError("two\\nlines")

def misfit(shape, num_classes):
    return nn.Linear(5, num_classes)

number = 3
"""


@pytest.fixture
def mynet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mynet.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("place", ["./mynet.py:good", "mynet:good"])
def test_a_factory_of_ones_own_is_a_backbone_by_its_place(place: str, mynet: Path) -> None:
    spec = spec_of((3, 8, 8), 4)
    network = build_network(place, spec, seed=1).eval()
    x = torch.randn(2, 3, 8, 8)
    assert network.feature_width == 7 and network.embed(x).shape == (2, 7) and network(x).shape == (2, 4)
    assert torch.equal(network(x), network.classifier(network.embed(x)))
    again = build_network(place, spec, seed=1).state_dict()
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())
    assert not network.couples_batch
    with pytest.raises(UsageError, match=r"has no maps of blocks"):
        network.maps(x)


def test_batch_norm_is_seen_in_a_network_of_ones_own(mynet: Path) -> None:
    assert build_network("mynet.py:normed", spec_of((3, 8, 8), 4), seed=1).couples_batch


def test_a_registered_module_is_wrapped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS._entries, "mine", lambda shape, k: nn.Sequential(nn.Flatten(), nn.Linear(64, k)))
    network = build_network("mine", spec_of((1, 8, 8), 10), seed=0)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10) and network.feature_width == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nonet.py:good", r"there is no file nonet.py"),
        ("no_such_package.here:good", r"cannot import no_such_package.here: ModuleNotFoundError"),
        ("mynet.py:bad", r"mynet.py has no function 'bad'"),
        ("mynet.py:number", r"mynet.py has no function 'number'"),
        ("mynet.py:softmax", r"must end in a Linear layer"),
        ("mynet.py:other_classes", r"gives \(2, 5\) for 2 images: need \(2, 4\)"),
        ("mynet.py:no_module", r"gave a str: need a torch.nn.Module"),
        ("mynet.py:broken", r"cannot be built for images \(3, 8, 8\): ValueError: two"),
        ("mynet.py:misfit", r"fails on images \(3, 8, 8\): RuntimeError"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused_in_one_line(name: str, message: str, mynet: Path) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        build_network(name, spec_of((3, 8, 8), 4), seed=0)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_imported_is_refused_before_data_are_needed(mynet: Path) -> None:
    mynet.write_text("import nothing_of_the_kind")
    with pytest.raises(UsageError, match=r"cannot import mynet\.py: ModuleNotFoundError: No module named"):
        check_network("mynet.py:good")


def test_an_edited_factory_is_another_network(mynet: Path) -> None:
    """Else a pool member trained with the old one would be taken from the cache."""
    before = identity("mynet.py:good")
    mynet.write_text(OWN.replace("7", "9"))
    assert identity("mynet.py:good") != before
    assert identity("convnet:depth=4") == "convnet:depth=4"
