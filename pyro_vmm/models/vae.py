"""A variational autoencoder with any of the priors, as a model/guide pair."""

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vmm.distributions import Mixture
from pyro_vmm.models.base import LatentVariableModel, show_parameters
from pyro_vmm.priors import component


class VAE(LatentVariableModel):
    """A variational autoencoder: encoder, decoder, likelihood and a prior on z, as a Pyro model and guide.

    ``pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))`` trains
    everything at once; :mod:`pyro_vmm.inference` alternates the two steps of the paper. Nothing is kept in Pyro's
    global parameter store, so models never collide.

    Arguments:
        encoder: x (N, *event_shape) -> q(z; x), a normal with batch shape (N,) and event shape (D,).
        decoder: z (N, D) -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z), batch shape (N,); see :mod:`pyro_vmm.likelihoods`.
        prior: one of :mod:`pyro_vmm.priors`.
    """

    def model(
        self,
        x: Tensor | None = None,
        p_z: Mixture | None = None,
        rows: int = 1,
        observe: bool = True,
        changed: Tensor | None = None,
    ) -> Tensor:
        """p(alpha, pi, mu, Lambda) and, for each row, p(c | pi) p(z | c, mu, Lambda) p(x | z).

        A changed copy of a row has a z and an x of its own, from the same component:
        p(z_changed | c, mu, Lambda) p(x_changed | z_changed).

        Arguments:
            x: the data, (M, *event_shape); None to sample.
            p_z: the prior on z, to condition on; then only the sites ``c``, ``z`` and ``x`` are declared. None for the
                whole hierarchy.
            rows: M, when x is None.
            observe: True to condition on ``x``, False to draw as many rows.
            changed: changed copies of the rows, of the shape of ``x``; None for none.
        """
        if p_z is None:
            show_parameters(self)
            p_z = self.prior.hierarchy(rows if x is None else len(x), self.encoder)
        with pyro.plate("data", rows if x is None else len(x)):
            p_z_c = component(p_z)
            if changed is not None:
                z = pyro.sample("z_changed", p_z_c)
                pyro.sample("x_changed", self.p_x(z), obs=changed)
            z = pyro.sample("z", p_z_c)
            return pyro.sample("x", self.p_x(z), obs=x if observe else None)

    def guide(
        self,
        x: Tensor | None = None,
        p_z: Mixture | None = None,
        rows: int = 1,
        observe: bool = True,
        changed: Tensor | None = None,
    ) -> None:
        """q(alpha) q(pi) q(mu; u) q(Lambda) and, for each row, q(z; x); the signature is the model's."""
        if p_z is None:
            show_parameters(self)
            self.prior.hierarchy_guide(self.encoder)
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encoder(x))
                if changed is not None:
                    pyro.sample("z_changed", self.encoder(changed))

    def p_x(self, z: Tensor) -> TorchDistribution:
        """p(x | z) of z (N, D): batch shape (N,)."""
        return self.likelihood(self.decoder(z))
