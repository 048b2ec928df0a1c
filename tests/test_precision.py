"""Networks in less than float32, and nothing else."""

import numpy as np
import pytest
import torch
from common import CorrelatedEncoder
from pyro.distributions import TorchDistribution
from sklearn.datasets import load_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmm import VMM
from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.inference import Steps, Trainer, TrainingConfig
from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, mlp
from pyro_vmm.priors import VampMixture
from pyro_vmm.runtime import precision
from pyro_vmm.runtime.precision import in_precision, network_precision

G, D, K, M = 6, 2, 3, 8
SETTING = "fp32_precision" if torch.__version__ >= (2, 9) else "allow_tf32"


def matmul():
    """What torch is set to, which is process-wide."""
    return getattr(torch.backends.cuda.matmul, SETTING)


def build() -> VAE:
    torch.manual_seed(0)
    encoder, decoder = CorrelatedEncoder(mlp(G, (16,)), 16, D), Decoder(mlp(D, (16,)), 16, (G,))
    return VAE(encoder, decoder, Normal((G,)), VampMixture(D, torch.randn(K, G))).float().train()


class Seen(nn.Module):
    """Keeps what passes, and the setting then."""

    def forward(self, x):
        self.dtype, self.setting = x.dtype, matmul()
        return x


@pytest.mark.parametrize(("name", "inside"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_alone_are_in_bfloat16(name, inside, monkeypatch):
    torch.set_default_dtype(torch.float32)
    vae, x, dtypes, seen = build(), torch.randn(M, G), set(), [Seen(), Seen()]
    vae.encoder.body.append(seen[0]), vae.decoder.body.append(seen[1])
    mixture = MixtureOfGaussians.component_log_prob

    def watched(self, z):
        found = mixture(self, z)
        tensors = (z, self.loc, self.whitener, self.log_norm, self.log_weights, found)
        dtypes.update(each.dtype for each in tensors)
        return found

    monkeypatch.setattr(MixtureOfGaussians, "component_log_prob", watched)
    with network_precision(name):
        terms, responsibilities = Steps(vae, TrainingConfig()).iteration(x)
        p_x: TorchDistribution = vae.p_x(vae.encoder(x).rsample())
    assert [each.dtype for each in seen] == [inside, inside]
    assert dtypes == {torch.float32} and terms.dtype == responsibilities.dtype == torch.float32
    assert p_x.base_dist.loc.dtype == p_x.log_prob(x).dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in vae.parameters())


def test_float32_is_torchs_own():
    vae, x = build(), torch.randn(M, G).float()
    plain = vae.encoder.head(vae.encoder.body(x))
    with network_precision("float32"):
        assert torch.equal(in_precision(x, vae.encoder.body, vae.encoder.head), plain)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(M, G), (2, M, G)])
def test_tf32_layers_are_linear_layers(bias, shape):
    """On a CPU there is no TF32: the same values and gradients."""
    layer, x = nn.Linear(G, 3, bias=bias), torch.randn(shape, requires_grad=True)
    weight = torch.randn(3)

    def gradients(out) -> list:
        return [out, *torch.autograd.grad((out.tanh() * weight).sum(), [x, *layer.parameters()])]

    expected = gradients(layer(x))
    with network_precision("tf32"):
        found = gradients(in_precision(x, layer))
    torch.testing.assert_close(found, expected)


class Products(TorchDispatchMode):
    """Notes what is set at each matrix product."""

    def __init__(self):
        super().__init__()
        self.settings = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.settings.append(matmul())
        return func(*args, **(kwargs or {}))


def test_tf32_is_set_within_linear_layers_alone():
    """In both directions; before, between and after them products are exact, and the caller's setting comes back."""
    layer, seen, before = nn.Linear(G, 3), Seen(), matmul()
    x, other = torch.randn(M, G, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    with network_precision("tf32"), Products() as products:
        out = in_precision(x, seen, layer)
        (out @ other).sum().backward()
    exact, tf32 = ("ieee", "tf32") if SETTING == "fp32_precision" else (False, True)
    # The layer, the product after it; backwards the product's two, and the layer's two.
    assert products.settings == [tf32, exact, exact, exact, tf32, tf32]
    assert seen.setting == exact and matmul() == before


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_the_callers_settings_come_back_after_training(name):
    before = matmul()
    trainer = Trainer(build(), TrainingConfig(epochs=1, precision=name))
    trainer.fit(torch.randn(40, G).float(), progress=False)
    assert matmul() == before and precision._precision.get() == "float32"
    with pytest.raises(ZeroDivisionError), network_precision(name):
        raise ZeroDivisionError
    assert matmul() == before and precision._precision.get() == "float32"


def test_wrong_precisions_are_told():
    with pytest.raises(ValueError, match="precision='fp8' should be one of"):
        TrainingConfig(precision="fp8")
    with pytest.raises(ValueError, match="precision='bf16' is for models of float32"):
        Trainer(build().double(), TrainingConfig(precision="bf16"))
    with pytest.raises(ValueError, match="precision='tf32' needs dtype='float32'"):
        VMM(precision="tf32", dtype="float64").fit(np.eye(5))


NEW = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("capabilities", "precision", "warns"),
    [
        (NEW, "bf16", False),
        ({**NEW, "avx512_bf16": False}, "bf16", True),
        ({**NEW, "avx512_bf16": False, "amx_bf16": True}, "bf16", False),
        ({**NEW, "avx512_bf16": False}, "float32", False),
        ({"architecture": "arm64"}, "bf16", False),
        (None, "bf16", False),  # torch does not say
    ],
)
def test_a_cpu_without_bfloat16_is_warned_of(capabilities, precision, warns, monkeypatch, recwarn):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    Trainer(build(), TrainingConfig(precision=precision))
    assert [str(each.message)[:35] for each in recwarn] == ["precision='bf16' is likely to be sl"] * warns


def test_answers_are_exact():
    """Training alone is rounded: a fitted model computes in float32."""
    X = load_digits(return_X_y=True)[0][:200]
    model = VMM(epochs=2, n_components=4, hidden=(16,), precision="bf16", settle=False, random_state=0).fit(X)
    exact = model.vae_.encoder(model.to_tensor(X)).mean.detach().numpy()
    np.testing.assert_array_equal(model.transform(X), exact)


@pytest.mark.slow
def test_bfloat16_fits_the_digits_as_well():
    """Its ELBO is that of float32 with the same seed, up to what rounding makes of it; epochs still bring 10 nats."""
    X, _ = load_digits(return_X_y=True)
    settings = {"latent_dim": 6, "hidden": (64, 64), "learning_rate": 2e-3, "epochs": 12, "n_components": 20}
    for seed in (0, 1):
        curves = {
            name: VMM(**settings, precision=name, random_state=seed).fit(X).history_["val_elbo"]
            for name in ("float32", "bf16")
        }
        assert curves["float32"].iloc[-1] > curves["float32"].iloc[5] + 10
        assert curves["bf16"].iloc[-1] == pytest.approx(curves["float32"].iloc[-1], abs=10)
        assert not curves["bf16"].equals(curves["float32"])
