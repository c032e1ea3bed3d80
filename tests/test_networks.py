"""ConvNet-D: sizes, the fused block against PyTorch's own layers, and seeding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import UsageError
from potstill.networks import NETWORKS, build_network
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
        ("convnet", (1, 64, 64), 4, 2048),
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
    maps = network.stages(x)
    assert len(maps) == depth
    assert network.embed(x).shape == (2, network.feature_width) == (2, width)
    assert network(x).shape == (2, 7)
    assert torch.equal(network.embed(x), maps[-1].flatten(1))


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
    spec = spec_of((1, 16, 16), 3)
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
