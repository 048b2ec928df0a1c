"""VaDE: a Gaussian mixture prior trained by the ELBO together with the networks, and its pre-training."""

import copy
import warnings
from collections.abc import Callable
from contextlib import closing

import pyro
import pyro.distributions as dist
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor, nn

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.inference import TrainingDiverged
from pyro_vmm.inference.adam import Adam
from pyro_vmm.inference.state import PLACE, check_model, check_optimizer, check_random_numbers
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.models import VAE, show_parameters
from pyro_vmm.networks import COVARIANCES, CovarianceShape, inference_mode, inverse_lower_cholesky
from pyro_vmm.priors import Prior
from pyro_vmm.priors.covariances import as_covariance
from pyro_vmm.rivals.elbo import MeanFieldElbo
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.randomness import RandomNumbers
from pyro_vmm.runtime.rows import Rows, read, shuffled
from pyro_vmm.runtime.weighted import Weighted

# Added to the variances of the mixture that VaDE starts from, as the VMM's authors do: no component shrinks to one row.
LEAST_VARIANCE = 1e-3


class TrainedMixture(Prior):
    r"""A mixture of K normals without hyper-priors, trained by the ELBO.

    .. math:: p(z) = \sum_k \pi_k\, \mathcal{N}(z;\ \mu_k, (L_k L_k^\top)^{-1})

    Arguments:
        mu: initial centres, (K, D).
        covariance: of the components, "full" or "diagonal".
    """

    per_component = ("pi_logits", "mu", "precision_raw")

    def __init__(self, mu: Tensor, covariance: CovarianceShape = "diagonal"):
        if mu.dim() != 2:
            raise ValueError(f"mu has shape {tuple(mu.shape)}, expected (K, D)")
        check_choice("covariance", covariance, COVARIANCES)
        super().__init__(mu.shape[1], len(mu))
        self.covariance = as_covariance(covariance)
        self.pi_logits = nn.Parameter(torch.zeros(len(mu)))
        self.mu = nn.Parameter(mu.detach().clone())
        self.precision_raw = nn.Parameter(self.covariance.start(self.latent_dim, len(mu)))

    @property
    def log_pi(self) -> Tensor:
        """Log-weights, (K,)."""
        return self.pi_logits.log_softmax(-1)

    @property
    def precision_tril(self) -> Tensor:
        """L, (K, D, D)."""
        return self.covariance.tril(self.precision_raw, self.latent_dim, self.n_components)

    def forward(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        return MixtureOfGaussians.from_precision(self.log_pi, self.mu, self.precision_tril)

    @torch.no_grad()
    def start_at(self, log_pi: Tensor, mu: Tensor, precision_tril: Tensor) -> None:
        """Take the values of log pi (K,), mu (K, D) and L (K, D, D)."""
        self.pi_logits.copy_(log_pi)
        self.mu.copy_(mu)
        raw = inverse_lower_cholesky(precision_tril)
        self.precision_raw.copy_(raw.diagonal(dim1=-2, dim2=-1) if self.covariance.independent_axes else raw)


class VariationalDeepEmbedding(VAE):
    r"""VaDE (Jiang et al. 2017, arXiv:1611.05148) as a Pyro pair.

    The model is that of a :class:`~pyro_vmm.models.VAE` with a :class:`TrainedMixture`. The guide also has the cluster,

    .. math:: q(z, c \mid x) = q(z; x)\, q(c), \qquad q(c) = p(c \mid z)

    :meth:`objective` is the paper's equation (12): given q(c) at one draw of z, all terms except log p(x | z) are in
    closed form. ``TraceEnum_ELBO`` trains the same pair by a tighter bound, in which q(c) depends on z: c is summed out
    of the prior, as for the other priors.

    Arguments:
        encoder, decoder, likelihood: as for a :class:`~pyro_vmm.models.VAE`.
        prior: a :class:`TrainedMixture`.
    """

    prior: TrainedMixture

    def guide(
        self, x: Tensor | None = None, p_z: MixtureOfGaussians | None = None, rows: int = 1, observe: bool = True
    ) -> None:
        """q(z; x) and q(c); the signature is the model's."""
        if p_z is None:
            show_parameters(self)
        given = self.prior(self.encoder) if p_z is None else p_z
        if x is not None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.encoder(x))
                q_c = dist.Categorical(logits=given.joint_log_prob(z))
                pyro.sample("c", q_c, infer={"enumerate": "parallel"})

    def objective(self) -> MeanFieldElbo:
        return MeanFieldElbo()


def pretrain(
    vae: VAE,
    x: Rows,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    checkpoint: Callable[[dict], None] | None = None,
    state: dict | None = None,
) -> list[float]:
    """Train all except the prior by the ELBO without its KL, E_q(z; x) log p(x | z), with one draw of z per row.

    The code of the VMM's authors does the same (Stirn & Knowles 2025, arXiv:2402.04412). The VaDE paper pre-trains a
    deterministic autoencoder, which leaves the covariance of q(z; x) and the scale of the noise at their start. Then
    training begins with draws that blur the codes that the mixture is fitted to, and with a likelihood too weak to hold
    them against the KL: clusters merge.

    Arguments:
        vae: trained in place.
        x: training rows, (N, ...).
        epochs, batch_size, learning_rate: of Adam.
        seed: of the order of the rows, and of the draws of z.
        checkpoint: called at the start and after every epoch with the complete state.
        state: a state that ``checkpoint`` was given, to continue from it bit for bit.

    Returns:
        the mean of log p(x | z) in each epoch.
    """
    trained = nn.ModuleList([vae.encoder, vae.decoder, vae.likelihood])
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer, order, history = Adam(parameters, learning_rate), torch.Generator().manual_seed(seed), []
    numbers = RandomNumbers(seed, vae.prior.origin.device)

    def keep() -> dict:
        now = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "order": order.get_state()}
        now = copy.deepcopy({**now, "rng": numbers.state, "history": history})
        if checkpoint is not None:
            checkpoint(now)
        return now

    vae.train()
    if state is not None:
        check_pretraining(state, vae, optimizer)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        optimizer.param_groups[0]["lr"] = learning_rate  # a run that diverged may continue with another one
        order.set_state(state["order"])
        numbers.state = state["rng"]
        history += state["history"]
    good = keep()
    while len(history) < epochs:
        total = vae.prior.origin.new_zeros(())
        with closing(read(x, shuffled(x, batch_size, order))) as stream:
            for batch in stream:
                with numbers.drawn(), quiet_pyro():
                    loss = -vae.p_x(vae.encoder(batch).rsample()).log_prob(batch).mean()
                    optimizer.zero_grad()
                    loss.backward(inputs=parameters)
                    optimizer.step()
                total -= loss.detach() * len(batch)
        history.append(float(total / len(x)))
        if not torch.isfinite(total):
            if checkpoint is not None:
                checkpoint({**good, "diverged": True})
            raise TrainingDiverged(
                f"log_likelihood is {history[-1]} in epoch {len(history)} of the pre-training. A smaller "
                "pretraining_learning_rate, scaled data or dtype='float64' may help"
            )
        good = keep()
    return history


def check_pretraining(state: dict, vae: VAE, optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` unless a pre-training of this model, by this optimiser, can continue from a state."""
    entries = Entries(state, PLACE)
    check_model(entries, "model", vae)
    check_optimizer(entries, "optimizer", optimizer)
    check_random_numbers(entries, begun=len(entries.each("history", int | float, "numbers")) > 0)


@torch.no_grad()
def start_from_mixture(vae: VariationalDeepEmbedding, x: Rows, seed: int) -> None:
    """Start a :class:`TrainedMixture` at a mixture fitted to the means of q(z; x) by expectation maximisation.

    Arguments:
        vae: its prior starts there.
        x: training rows, (N, ...), at least K of them; weighted ones count as often as a draw has them.
        seed: of the fit.
    """
    rows = x.counted(len(x), seed) if isinstance(x, Weighted) else torch.arange(len(x))
    with inference_mode(vae), closing(read(x, rows.split(1024))) as stream:
        z = torch.cat([_means(vae, rows) for rows in stream])
    independent = vae.prior.covariance.independent_axes
    mixture = SklearnMixture(
        vae.prior.n_components,
        covariance_type="diag" if independent else "full",
        reg_covar=LEAST_VARIANCE,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not have converged
        mixture.fit(z.double().cpu().numpy())
    log_pi, mu, precisions = (torch.as_tensor(each) for each in (mixture.weights_, mixture.means_, mixture.precisions_))
    precisions = torch.diag_embed(precisions) if independent else precisions
    vae.prior.start_at(log_pi.log(), mu, torch.linalg.cholesky(precisions))


def _means(vae: VAE, rows: Tensor) -> Tensor:
    """The means of q(z; x) of rows x (M, ...), (M, D)."""
    with exclusive():
        return vae.encoder(rows).mean
