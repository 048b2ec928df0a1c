"""Networks: shapes, covariances against dense formulas, and passes that leave no trace."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_vmm.networks import (
    Asinh,
    Decoder,
    GaussianEncoder,
    SoftOneHot,
    conv_decoder,
    conv_encoder,
    inference_mode,
    inverse_softplus,
    lower_cholesky,
    mlp,
    output_width,
    scale_tril,
)

IMAGE_SHAPES = [(8, 8), (7, 5), (1, 1), (3, 9, 6)]


def noisy_network() -> nn.Sequential:
    """Everything that behaves differently in training, nested; the last BatchNorm is frozen for good."""
    frozen = nn.BatchNorm1d(4).eval()
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), frozen)


def test_mlp():
    network = mlp(6, (5, 4), nn.Tanh)
    x = torch.randn(7, 2, 3)
    first, second = (layer for layer in network if isinstance(layer, nn.Linear))
    hidden = torch.tanh(x.reshape(7, 6) @ first.weight.T + first.bias)
    torch.testing.assert_close(network(x), torch.tanh(hidden @ second.weight.T + second.bias))
    assert network(x).shape == (7, 4)


def test_mlp_starts_glorot_uniform_with_zero_bias():
    layer = mlp(300, (200,))[1]
    bound = math.sqrt(6 / 500)
    assert (layer.bias == 0).all() and layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
def test_convolutions_have_any_image_size(image_shape):
    body = conv_encoder(image_shape, channels=(4, 6), width=10)
    assert body(torch.randn(2, *image_shape)).shape == (2, 10)
    height, width = image_shape[-2:]
    decoder = Decoder(conv_decoder(3, image_shape, channels=(6, 4), width=10), 4 * height * width, image_shape)
    assert decoder.body(torch.randn(2, 3)).shape == (2, 4 * height * width)
    assert decoder(torch.randn(2, 3)).shape == (2, *image_shape)


@pytest.mark.parametrize("image_shape", [(), (8,), (1, 2, 3, 4)])
@pytest.mark.parametrize("build", [conv_encoder, lambda shape: conv_decoder(2, shape)])
def test_convolutions_refuse_other_shapes(build, image_shape):
    with pytest.raises(ValueError, match=r"image_shape=\(.*\) should be \(height, width\) or"):
        build(image_shape)


@pytest.mark.parametrize("build", [conv_encoder, lambda shape: conv_decoder(2, shape)])
def test_convolutions_refuse_channels_that_come_last(build):
    with pytest.raises(ValueError, match=r"\(32, 32, 3\) looks like .* np\.moveaxis"):
        build((32, 32, 3))


def test_lower_cholesky():
    raw = torch.randn(5, 3, 3)
    expected = torch.zeros(5, 3, 3)
    for i in range(3):
        expected[:, i, i] = torch.log1p(raw[:, i, i].exp()) + 1e-5
        for j in range(i):
            expected[:, i, j] = raw[:, i, j]
    torch.testing.assert_close(lower_cholesky(raw), expected)


def test_lower_cholesky_in_float32_never_reaches_zero():
    raw = torch.full((2, 2), -1e4, dtype=torch.float32, requires_grad=True)
    tril = lower_cholesky(raw)
    assert (tril.diagonal() > 0).all() and tril.diagonal().log().isfinite().all()
    (gradient,) = torch.autograd.grad(tril.diagonal().log().sum(), raw)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [1e-3, 1.0, 30.0])
def test_inverse_softplus(value):
    assert F.softplus(torch.tensor(inverse_softplus(value))).item() == pytest.approx(value)


@pytest.mark.parametrize("dim", [1, 3])
def test_full_covariance_against_the_dense_formula(dim):
    """N(m, T T^T): the head gives m, then T row by row, its diagonal through softplus."""
    encoder = GaussianEncoder(nn.Identity(), 4, dim, "full", "random")
    x = torch.randn(6, 4)
    out = x @ encoder.head.weight.T + encoder.head.bias
    tril = torch.zeros(6, dim, dim)
    entry = dim
    for i in range(dim):
        for j in range(i + 1):
            tril[:, i, j] = out[:, entry] if i != j else F.softplus(out[:, entry]) + 1e-5
            entry += 1
    assert entry == out.shape[1]
    q = encoder(x)
    assert q.batch_shape == (6,) and q.event_shape == (dim,)
    torch.testing.assert_close(q.mean, out[:, :dim])
    torch.testing.assert_close(q.covariance_matrix, tril @ tril.mT)
    torch.testing.assert_close(scale_tril(q), tril)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_full_covariance_starts_diagonal_and_learns_the_rest(dim):
    encoder = GaussianEncoder(nn.Identity(), 4, dim)
    x = torch.randn(6, 4)
    tril = scale_tril(encoder(x))
    assert (tril.tril(-1) == 0).all()
    # The rest is as random as where all entries are.
    torch.manual_seed(0)
    random = GaussianEncoder(nn.Identity(), 4, dim, covariance_start="random")
    torch.manual_seed(0)
    again = GaussianEncoder(nn.Identity(), 4, dim)
    torch.testing.assert_close(again(x).mean, random(x).mean)
    diagonals = [scale_tril(each(x)).diagonal(dim1=-2, dim2=-1) for each in (again, random)]
    torch.testing.assert_close(*diagonals)
    assert (scale_tril(random(x)).tril(-1) != 0).sum() == 6 * dim * (dim - 1) // 2
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(x).log_prob(torch.randn(6, dim)).sum().backward()
    optimizer.step()
    assert (scale_tril(encoder(x)).tril(-1) != 0).sum() == 6 * dim * (dim - 1) // 2


def test_diagonal_covariance_against_the_dense_formula():
    encoder = GaussianEncoder(nn.Identity(), 4, 3, "diagonal")
    x, z = torch.randn(6, 4), torch.randn(6, 3)
    out = x @ encoder.head.weight.T + encoder.head.bias
    scale = F.softplus(out[:, 3:]) + 1e-5
    q = encoder(x)
    assert q.batch_shape == (6,) and q.event_shape == (3,)
    torch.testing.assert_close(q.mean, out[:, :3])
    torch.testing.assert_close(scale_tril(q), torch.diag_embed(scale))
    dense = torch.distributions.MultivariateNormal(out[:, :3], torch.diag_embed(scale**2))
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z))


def test_encoder_refuses_another_covariance():
    with pytest.raises(ValueError, match="covariance='diag' should be one of"):
        GaussianEncoder(nn.Identity(), 4, 3, "diag")
    with pytest.raises(ValueError, match="covariance_start='zero' should be one of"):
        GaussianEncoder(nn.Identity(), 4, 3, covariance_start="zero")


@pytest.mark.parametrize(("outputs", "extra"), [(1, ()), (3, (3,))])
def test_decoder_shapes(outputs, extra):
    decoder = Decoder(mlp(2, (5,)), 5, (4, 3), outputs)
    z = torch.randn(6, 2)
    assert decoder(z).shape == (6, 4, 3, *extra)
    assert decoder(torch.randn(7, 6, 2)).shape == (7, 6, 4, 3, *extra)
    torch.testing.assert_close(decoder(torch.stack([z, z]))[1], decoder(z))


def test_soft_one_hot_is_one_hot_at_codes_and_linear_between():
    codes = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    torch.testing.assert_close(SoftOneHot(4)(codes), F.one_hot(codes.long(), 4).double())
    between = torch.tensor([1.25], requires_grad=True)
    torch.testing.assert_close(SoftOneHot(4)(between), torch.tensor([[0.0, 0.75, 0.25, 0.0]]))
    torch.testing.assert_close(torch.autograd.grad(SoftOneHot(4)(between)[0, 2], between)[0], torch.ones(1))


def test_asinh():
    x = torch.tensor([-3.0, 0.0, 1e6])
    torch.testing.assert_close(Asinh()(x), torch.log(x + torch.sqrt(x**2 + 1)))


# inference_mode


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("fails", [False, True])
def test_inference_mode_restores_every_flag_and_touches_no_buffer(fails):
    network, x = noisy_network(), 5 + torch.randn(20, 3)
    flags, before = {m: m.training for m in network.modules()}, buffers(network)
    assert set(flags.values()) == {True, False}
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext(), inference_mode(network):
        assert not any(m.training for m in network.modules())
        # No dropout: two passes agree.
        torch.testing.assert_close(network(x), network(x), rtol=0.0, atol=0.0)
        if fails:
            raise KeyboardInterrupt
    assert {m: m.training for m in network.modules()} == flags
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    # The comparison can fail: a training pass does move the running statistics.
    network(x)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_inference_mode_lets_gradients_through():
    network, u = noisy_network(), torch.randn(4, 3, requires_grad=True)
    with inference_mode(network):
        out = network(u)
    (gradient,) = torch.autograd.grad(out.square().sum(), u)
    assert (gradient != 0).any()


# output_width


def test_output_width():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    before = buffers(network)
    assert output_width(network, torch.randn(2, 2, 3), "encoder") == 5
    assert network.training and all(torch.equal(b, before[name]) for name, b in network.named_buffers())


@pytest.mark.parametrize(
    "network", [nn.Linear(7, 2), nn.Embedding(3, 2), nn.Unflatten(1, (4, 4)), nn.Bilinear(3, 3, 2)]
)
def test_output_width_refuses_a_network_that_fails(network):
    with pytest.raises(ValueError, match=r"encoder can't take an input of shape \(2, 3\)"):
        output_width(network, torch.randn(2, 3), "encoder")


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "tuple"),
        (None, "NoneType"),
    ],
)
def test_output_width_refuses_what_is_no_matrix(value, got):
    with pytest.raises(ValueError, match=rf"decoder returned {got} for an input of shape \(2, 3\), expected \(N, H\)"):
        output_width(Returns(value), torch.randn(2, 3), "decoder")
