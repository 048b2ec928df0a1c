"""Milliseconds of the SVI step and the MAP step, beside the same mathematics by hand in plain PyTorch.

    python benchmarks/step_time.py --setting mnist

The two implementations are the training loop's own steps, :class:`pyro_vmm.inference.Steps`, and :class:`ByHand` below,
which takes only parameters and layers from the library: no Pyro, no ``torch.distributions``, the closed forms written
out. Both use the same fused Adam. First they must agree in float64 on losses and gradients over three iterations with
the same draws. Then they take turns in one process with a third, the floor of any implementation: only the matrix
products of an iteration.
"""

import argparse
import copy
import gc
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import floor
import pyro
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.inference import Steps, TrainingConfig
from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, GaussianEncoder, mlp, scale_tril
from pyro_vmm.priors import Centres, VampMixture
from pyro_vmm.runtime import files
from repro.pages import header, line, machine

M, K, D = 256, 100, 10
M_PRIOR = 256
LEARNING_RATE = 1e-4
LOG_TWO_PI = math.log(2 * math.pi)
# The floors of the library's Cholesky diagonals and noise scale: part of the function that both compute.
FLOOR = 1e-5
STEPS = ("svi_step", "map_step")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """The networks: G features, the encoder's widths, mirrored in the decoder."""

    features: int
    hidden: tuple[int, ...]


SETTINGS = {"mnist": Setting(784, (500, 500, 2000)), "digits": Setting(64, (128, 128))}


def build(setting: Setting) -> tuple[VAE, Tensor]:
    """The model with full covariances and the paper's hyper-priors, and a minibatch in [-1, 1]."""
    torch.manual_seed(0)
    g, hidden = setting.features, setting.hidden
    encoder = GaussianEncoder(mlp(g, hidden), hidden[-1], D)
    decoder = Decoder(mlp(D, hidden[::-1]), hidden[0], (g,))
    prior = VampMixture(D, 2 * torch.rand(K, g) - 1, m_prior=M_PRIOR)
    return VAE(encoder, decoder, Normal((g,)), prior), 2 * torch.rand(M, g) - 1


class ByHand:
    """Algorithm 1 without Pyro: held responsibilities, centres integrated out, the paper's hyper-priors.

    Arguments:
        vae: the model with the layers and parameters to train; its methods are not called.
    """

    def __init__(self, vae: VAE):
        self.encoder, self.decoder, self.noise = vae.encoder, vae.decoder, vae.likelihood.scale_raw
        self.prior, self.u = vae.prior, vae.prior.pseudo_inputs.u
        self.networks, self.prior_parameters = vae.network_parameters(), vae.prior_parameters()
        self.network_optimizer = torch.optim.Adam(self.networks, LEARNING_RATE, eps=1e-7, fused=True)
        self.prior_optimizer = torch.optim.Adam(self.prior_parameters, LEARNING_RATE, eps=1e-7, fused=True)
        self.identity = torch.eye(D, dtype=self.u.dtype)
        self.log_wishart_norm = log_wishart_norm(D + 2, K ** (1 / D) / (D + 2))

    def svi_step(self, x: Tensor) -> Tensor:
        """Returns the ELBO."""
        m, t, log_diagonal = self.encode(x)
        noise = torch.randn_like(m)
        z = m + (t @ noise.unsqueeze(-1)).squeeze(-1)
        log_q = -0.5 * noise.square().sum() - log_diagonal.sum() - 0.5 * z.numel() * LOG_TWO_PI
        elbo = (self.log_p_x(x, z) + self.log_p_z(z) - log_q) / len(x)
        step(self.network_optimizer, -elbo, self.networks)
        return elbo.detach()

    def map_step(self, x: Tensor) -> Tensor:
        """Returns the MAP objective."""
        with torch.no_grad():
            m, t, _ = self.encode(x)
            z = m + (t @ torch.randn_like(m).unsqueeze(-1)).squeeze(-1)
        loc, tril, _ = self.encode(self.u)
        log_pi, (chol, log_det) = self.prior.pi_logits.log_softmax(-1), lower(self.prior.precision_raw)
        trace = (chol.mT @ tril).square().sum((-2, -1))
        log_norm = log_pi + log_det - 0.5 * (D * LOG_TWO_PI + trace)
        objective = mixture(z, loc, chol, log_norm) / len(x)
        objective = objective + self.log_hyperprior(log_pi, loc, tril, chol, log_det) / M_PRIOR
        step(self.prior_optimizer, -objective, self.prior_parameters)
        return objective.detach()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (N, D), Cholesky factor (N, D, D) and the logarithm of its diagonal (N,) of q(z; x)."""
        loc, raw = self.encoder.head(self.encoder.body(x)).tensor_split([D], dim=-1)
        return loc, *lower(raw[:, self.encoder.tril_index].view(-1, D, D))

    def log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        mean = self.decoder.head(self.decoder.body(z))
        scale = F.softplus(self.noise) + FLOOR
        return -0.5 * (x - mean).square().sum() / scale**2 - x.numel() * (scale.log() + 0.5 * LOG_TWO_PI)

    def log_p_z(self, z: Tensor) -> Tensor:
        loc, tril, _ = self.encode(self.u)
        chol, log_det = lower(self.prior.precision_raw)
        a = chol.mT @ tril
        middle, _ = torch.linalg.cholesky_ex(self.identity + a @ a.mT)
        whitener = torch.linalg.solve_triangular(middle, chol.mT, upper=False).mT
        log_det = log_det - middle.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return mixture(z, loc, whitener, self.prior.pi_logits.log_softmax(-1) + log_det - 0.5 * D * LOG_TWO_PI)

    def log_hyperprior(self, log_pi: Tensor, loc: Tensor, tril: Tensor, chol: Tensor, log_det: Tensor) -> Tensor:
        alpha = F.softplus(self.prior.reciprocal_alpha_raw).reciprocal()
        log_alpha = -2 * alpha.log() - 1 / alpha
        a = alpha / K
        log_dirichlet = (a - 1) * log_pi.sum() + alpha.lgamma() - K * a.lgamma()
        log_mu = -0.5 * (loc.square().sum() + tril.square().sum() + loc.numel() * LOG_TWO_PI)
        scale = K ** (1 / D) / (D + 2)
        log_wishart = log_det.sum() - 0.5 * chol.square().sum() / scale - K * self.log_wishart_norm
        return log_alpha + log_dirichlet + log_mu + log_wishart


def lower(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Unconstrained (..., D, D) to a lower Cholesky factor and the sum of the logarithms of its diagonal."""
    diagonal = F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + FLOOR
    return raw.tril(-1) + torch.diag_embed(diagonal), diagonal.log().sum(-1)


def mixture(z: Tensor, loc: Tensor, whitener: Tensor, log_norm: Tensor) -> Tensor:
    """The sum over rows of log sum_k exp(log_norm_k - |W_k^T (z - m_k)|^2 / 2)."""
    means = (loc.unsqueeze(-2) @ whitener).squeeze(-2)
    white = (z @ whitener.permute(1, 0, 2).flatten(1)).view(-1, K, D) - means
    return (log_norm - 0.5 * white.square().sum(-1)).logsumexp(-1).sum()


def log_wishart_norm(df: float, scale: float) -> float:
    log_gamma = D * (D - 1) / 4 * math.log(math.pi) + sum(math.lgamma((df - j) / 2) for j in range(D))
    return df * D / 2 * math.log(2 * scale) + log_gamma


def step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    optimizer.step()


def make_pair(vae: VAE) -> tuple[Steps, ByHand]:
    """The library's steps and those by hand, on two copies of a model."""
    config = TrainingConfig(batch_size=M, learning_rate=LEARNING_RATE)
    return Steps(copy.deepcopy(vae).train(), config), ByHand(copy.deepcopy(vae).train())


def assert_agreement(vae: VAE, x: Tensor, iterations: int = 3) -> None:
    """Assert that losses and gradients are equal in float64, given the same draws."""
    ours, hand = make_pair(copy.deepcopy(vae).double())
    x, close = x.double(), {"rtol": 1e-9, "atol": 1e-10}
    for seed in range(iterations):
        for name in STEPS:
            torch.manual_seed(seed)
            loss = getattr(ours, name)(x)
            torch.manual_seed(seed)
            expected = getattr(hand, name)(x)
            torch.testing.assert_close(loss[0] if name == "svi_step" else loss, expected, **close)
        for mine, theirs in ((ours.networks, hand.networks), (ours.prior, hand.prior_parameters)):
            for p, q in zip(mine, theirs, strict=True):
                torch.testing.assert_close(p.grad, q.grad, **close)
                torch.testing.assert_close(p, q, **close)


def parts(vae: VAE, x: Tensor) -> dict[str, Callable[[], object]]:
    """The parts of the two steps, each forwards and backwards by itself, on the library's own modules."""
    steps, _ = make_pair(vae)
    steps.svi_step(x), steps.map_step(x)  # Adam needs gradients, and creates its state in the first step
    vae, prior = steps.vae, steps.vae.prior
    u, encoder_parameters = prior.pseudo_inputs.u, list(vae.encoder.parameters())
    decoder_parameters = [*vae.decoder.parameters(), *vae.likelihood.parameters()]
    z = vae.encoder(x).sample().requires_grad_()
    centres = Centres(*(value.detach().requires_grad_() for value in prior.centres(vae.encoder)))
    components = [*centres, prior.pi_logits, prior.precision_raw]

    def encoded(x: Tensor, inputs: list) -> None:
        q = vae.encoder(x)
        outputs = (q.mean, scale_tril(q))
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs], inputs=inputs)

    def mixture_terms(make: Callable[..., MixtureOfGaussians], inputs: list) -> None:
        p_z = make(prior.log_pi, centres.loc, prior.precision_tril, centres.tril)
        p_z.log_prob(z).sum().backward(inputs=inputs)

    def without_gradient() -> None:
        with torch.no_grad():
            vae.encoder(x).sample()

    return {
        "SVI: encoder on data": lambda: encoded(x, encoder_parameters),
        "SVI: encoder on pseudo-inputs": lambda: encoded(u, encoder_parameters),
        "SVI: decoder and likelihood": lambda: vae.p_x(z).log_prob(x).sum().backward(inputs=[z, *decoder_parameters]),
        "SVI: mixture terms": lambda: mixture_terms(MixtureOfGaussians.from_precision, [z, *centres]),
        "SVI: Adam": steps.network_optimizer.step,
        "MAP: encoder on data, no gradient": without_gradient,
        "MAP: encoder on pseudo-inputs": lambda: encoded(u, [u]),
        "MAP: mixture terms": lambda: mixture_terms(MixtureOfGaussians.expected, components),
        "MAP: Adam": steps.prior_optimizer.step,
    }


class Clock:
    """Milliseconds of calls that take turns.

    Arguments:
        read: a function that returns seconds, such as ``time.perf_counter`` or ``time.process_time``.
    """

    def __init__(self, read: Callable[[], float]):
        self.read, self.samples = read, {}

    def alternate(self, turns: list[dict[str, Callable[[], object]]], repeats: int, warm_up: int) -> None:
        """Call everything ``warm_up + repeats`` times; the order changes at every repeat."""
        for repeat in range(warm_up + repeats):
            for turn in turns[:: 1 if repeat % 2 else -1]:
                for name, call in turn.items():
                    start = self.read()
                    call()
                    if repeat >= warm_up:
                        self.samples.setdefault(name, []).append(1e3 * (self.read() - start))

    def total(self, *names: str) -> list[float]:
        """The sums over ``names``, repeat by repeat."""
        return [sum(values) for values in zip(*(self.samples[name] for name in names), strict=True)]


def measure(setting: Setting, repeats: int, warm_up: int, read: Callable[[], float]) -> str:
    """The two tables of a setting, as Markdown."""
    vae, x = build(setting)
    assert_agreement(vae, x)
    ours, hand = make_pair(vae)
    clock = Clock(read)
    turns = [
        {f"{who} {name}": partial(getattr(steps, name), x) for name in STEPS}
        for who, steps in (("ours", ours), ("hand", hand))
    ]
    products = {name: floor.of(partial(getattr(hand, name), x)) for name in STEPS}
    turns.append({f"floor {name}": products[name].floor() for name in STEPS})
    gc.collect()
    gc.disable()  # a collection would slow one of the two at random
    try:
        clock.alternate(turns, repeats, warm_up)
        clock.alternate([parts(vae, x)], repeats, warm_up)
    finally:
        gc.enable()
    work = f"The products of an iteration are {sum(p.flop for p in products.values()) / 1e9:.2f} GFLOP."
    return "\n".join([*steps_table(clock), "", work, "", *parts_table(clock)])


def steps_table(clock: Clock) -> list[str]:
    columns = ["step", "ours, median ms", "min", "by hand", "min", "floor", "min"]
    columns += ["ours - hand", "ours / hand", "of minima", "ours / floor", "of minima"]
    lines = header(columns)
    rows = {"SVI": STEPS[:1], "MAP": STEPS[1:], "**both**": STEPS}
    for title, names in rows.items():
        times = [clock.total(*(f"{who} {name}" for name in names)) for who in ("ours", "hand", "floor")]
        (a, a_min), (b, b_min), (c, c_min) = ((statistics.median(each), min(each)) for each in times)
        cells = [a, a_min, b, b_min, c, c_min, a - b, a / b, a_min / b_min, a / c, a_min / c_min]
        lines.append(line([title, *(f"{cell:.2f}" for cell in cells)]))
    return lines


def parts_table(clock: Clock) -> list[str]:
    lines = header(["part", "median ms", "min"])
    parts = {name: values for name, values in clock.samples.items() if ":" in name}
    for name, values in parts.items():
        lines.append(line([name, f"{statistics.median(values):.2f}", f"{min(values):.2f}"]))
    mixture_ms, encoder_ms = (
        statistics.median(clock.total(*(name for name in parts if what in name)))
        for what in ("mixture terms", "encoder")
    )
    verdict = "less" if mixture_ms < encoder_ms else "NOT LESS"
    comparison = f"Mixture terms (K = {K}): {mixture_ms:.2f} ms, {verdict} than the encoder's {encoder_ms:.2f} ms."
    return [*lines, "", comparison]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine, with one thread")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    report = [
        f"    {shlex.join(['python', *sys.argv])}",
        "",
        f"{machine()}, load {os.getloadavg()[0]:.1f}; {args.clock} time.",
    ]
    with pyro.validation_enabled(False):  # as in Trainer.fit
        for name in SETTINGS if args.setting == "all" else [args.setting]:
            setting = SETTINGS[name]
            title = f"{name}: M={M}, G={setting.features}, K={K}, D={D}, hidden {setting.hidden}, float32"
            report += ["", f"## {title}", "", measure(setting, args.repeats, args.warm_up, CLOCKS[args.clock])]
    text = "\n".join(report)
    print(text)
    if args.out:
        files.write_text(args.out, text + "\n")


if __name__ == "__main__":
    main()
