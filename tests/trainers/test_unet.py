"""The U-Net is that of the paper, and what is said about its receptive field is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from voidzoo.trainers.networks.geometry import geometry, parameter_count
from voidzoo.trainers.networks.unet import ChannelNets, MaxBlurPool, UNet, build


@pytest.mark.parametrize(
    ("depth", "filters", "out", "count"),
    [
        (2, 32, 1, 334_817),
        (2, 96, 1, 2_995_105),
        (3, 32, 3, 1_370_275),
        (4, 32, 1, 5_505_377),
        (4, 32, 3, 5_505_443),
        (4, 32, 4, 5_505_476),
    ],
)
def test_parameter_counts(depth, filters, out, count):
    """Known answers by arithmetic, batch norm as 4 values a channel."""
    assert parameter_count(UNet(2, channels_out=out, depth=depth, filters=filters)) == count


def test_config_builds_the_same_network():
    for net in (
        UNet(3, depth=1, filters=2, kernel=(1, 3, 5), residual=True),
        UNet(2, depth=1, filters=2, pooling="blur", top_skip=False),
        ChannelNets(2, dims=2, filters=2, depth=1),
    ):
        again = build(net.config())
        assert again.config() == net.config()
        again.load_state_dict(net.state_dict())
        shape = (1, 1, *(3, 8, 12)[-net.dims :]) if isinstance(net, UNet) else (1, 2, 8, 12)
        x = torch.randn(shape)
        torch.testing.assert_close(again.eval()(x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(("pool", "shape"), [((2, 2), (8, 12)), ((1, 2, 2), (3, 8, 12)), ((2, 2, 2), (4, 6, 8))])
def test_max_blur_pool_against_scipy(pool, shape):
    """The maximum of each pixel and the next, zeros around, [1 2 1] / 4, every second: lies in the middle of its pair."""
    x = np.random.default_rng().random((2, 3, *shape)).astype(np.float32)
    got = MaxBlurPool(pool, 3)(torch.from_numpy(x)).numpy()
    expected = x
    for axis, p in enumerate(pool, start=2):
        if p == 2:
            n = x.shape[axis]
            expected = np.maximum(expected.take(range(n - 1), axis), expected.take(range(1, n), axis))
    for axis, p in enumerate(pool, start=2):
        if p == 2:
            blurred = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis, mode="constant")
            expected = blurred.take(range(0, x.shape[axis] - 1, 2), axis)  # place 2i: between the pixels 2i and 2i+1
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert got.shape[2:] == tuple(n // p for n, p in zip(shape, pool, strict=True))


def test_without_the_top_skip_the_first_level_is_not_seen_again():
    """N2V2 as published: one input less of the last level, and as many parameters less."""
    plain, n2v2 = UNet(2), UNet(2, top_skip=False, pooling="blur")
    assert parameter_count(plain) - parameter_count(n2v2) == 32 * 32 * 9
    assert n2v2(torch.randn(1, 1, 16, 20)).shape == (1, 1, 16, 20)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="no network 'vnet'"):
        build({"network": "vnet"})
    with pytest.raises(ValueError, match="each of 3 axes"):
        UNet(3, kernel=(3, 3))
    with pytest.raises(ValueError, match="as many outputs"):
        UNet(2, channels_out=2, residual=True)


def test_channels_do_not_leak():
    """Changing one channel of the input leaves the other channels of the output bit-identical."""
    net = ChannelNets(3, dims=2, filters=3, depth=1).eval()
    x = torch.randn(1, 3, 16, 16)
    other = x.clone()
    other[:, 1] = torch.randn(1, 16, 16)
    a, b = net(x), net(other)
    assert torch.equal(a[:, 0], b[:, 0])
    assert torch.equal(a[:, 2], b[:, 2])
    assert not torch.equal(a[:, 1], b[:, 1])


@pytest.mark.parametrize(
    ("depth", "kernel", "expected"),
    [
        (1, 3, (2, 9, 8, 8)),
        (2, 3, (4, 23, 22, 24)),
        (3, 3, (8, 51, 46, 48)),
        (4, 3, (16, 107, 94, 96)),
        (5, 3, (32, 219, 190, 192)),
        (2, 5, (4, 43, 40, 40)),
        (3, 5, (8, 95, 92, 96)),
        (4, 5, (16, 199, 188, 192)),
    ],
)
def test_geometry_known_answers(depth, kernel, expected):
    """step, radius of any pixel, radius of aligned tiles, halo to use."""
    found = geometry(UNet(2, depth=depth, filters=1, kernel=(kernel, kernel)).config())["x"]
    assert (found.step, found.radius, found.aligned, found.halo) == expected


def test_geometry_without_pooling_along_z():
    found = geometry(UNet(3, filters=1).config())
    assert (found["z"].step, found["z"].radius, found["z"].halo) == (1, 10, 10)
    assert (found["y"].step, found["y"].radius, found["y"].halo) == (4, 23, 24)


def _open(net, patch):
    """Positive weights and average pooling: every path of the network carries gradient, so that support is exact."""
    for module in net.modules():
        if hasattr(module, "weight") and module.weight is not None:
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    if net.pooling == "max":
        mean = (torch.nn.AvgPool2d, torch.nn.AvgPool3d)[net.dims - 2](net.pool)
        net.shrink = torch.nn.ModuleList(mean for _ in range(net.depth))
    else:  # the mean of what the maximum is taken over, then the same blur
        mean = (torch.nn.AvgPool2d, torch.nn.AvgPool3d)[net.dims - 2](net.pool, stride=1)
        patch.setattr(functional, f"max_pool{net.dims}d", lambda x, *_, **__: mean(x))
    return net.double().eval()


@pytest.mark.parametrize("pooling", ["max", "blur"])
@pytest.mark.parametrize(
    ("dims", "depth", "kernel", "pool", "shape"),
    [
        (2, 1, (3, 3), (2, 2), (44, 44)),
        (2, 2, (3, 3), (2, 2), (100, 100)),
        (2, 2, (5, 3), (2, 2), (180, 100)),
        (2, 3, (3, 3), (2, 2), (240, 240)),
        (3, 1, (3, 3, 3), (1, 2, 2), (20, 40, 40)),
        (3, 2, (3, 1, 3), (1, 2, 2), (30, 16, 100)),
        (3, 1, (3, 3, 3), (2, 2, 2), (40, 40, 40)),
    ],
)
def test_geometry_is_the_support_of_the_gradient(dims, depth, kernel, pool, shape, pooling, monkeypatch):
    """The worst pixel sees exactly `radius`; aligned cores see exactly `aligned` to either side."""
    settings = {"top_skip": pooling == "max", "pooling": pooling}
    net = UNet(dims, depth=depth, filters=1, kernel=kernel, pool=pool, batch_norm=False, **settings)
    net = _open(net, monkeypatch)
    for axis, (letter, found) in enumerate(geometry(net.config()).items()):
        middle = [n // 2 // (p**depth) * p**depth for n, p in zip(shape, pool, strict=True)]
        reach = []
        for phase in range(found.step):
            at = list(middle)
            at[axis] += phase
            x = torch.rand((1, 1, *shape), dtype=torch.float64, requires_grad=True)
            net(x)[(0, 0, *at)].backward()
            seen = x.grad[0, 0].abs().sum(dim=[a for a in range(dims) if a != axis]).nonzero()[:, 0]
            reach.append((phase, at[axis] - int(seen.min()), int(seen.max()) - at[axis]))
        assert max(max(left, right) for _, left, right in reach) == found.radius, letter
        assert max(left - phase for phase, left, _ in reach) == found.aligned, letter
        assert max(right - (found.step - 1 - phase) for phase, _, right in reach) == found.aligned, letter


@pytest.mark.parametrize("pooling", ["max", "blur"])
@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_with_halo_equal_the_whole(dims, pooling):
    """In float64 a tile read with its halo gives the same core as the whole image; one step less does not."""
    torch.manual_seed(dims)
    net = UNet(dims, depth=2, filters=3, pooling=pooling, top_skip=pooling == "max")
    for module in net.modules():  # He weights, so that far pixels matter
        if hasattr(module, "kernel_size") and hasattr(module, "weight"):
            torch.nn.init.kaiming_normal_(module.weight)
    net = net.double().eval()
    found = geometry(net.config())["x"]
    shape = (96, 96) if dims == 2 else (6, 68, 68)
    x = torch.randn((1, 1, *shape), dtype=torch.float64)
    start, stop = 32, 40

    def core(halo):
        part = net(x[..., start - halo : min(stop + halo, shape[-1])])
        return part[..., halo : halo + stop - start]

    with torch.no_grad():
        whole = net(x)[..., start:stop]
        assert (core(found.halo) - whole).abs().max() < 1e-12 * whole.std()
        assert (core(found.halo - 8) - whole).abs().max() > 1e-6 * whole.std()
