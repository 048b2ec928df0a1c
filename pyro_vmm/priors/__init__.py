r"""What is p(z)? A prior: a module whose ``forward(encoder)`` returns p(z), and a Pyro model/guide pair.

========================  ================================================  =========================================
prior                     p(z)                                              parameters, and the step that trains them
========================  ================================================  =========================================
:class:`StandardNormal`   Normal(0, I)                                      none
:class:`VampPrior`        :math:`K^{-1} \sum_k q(z; u_k)`                   u, SVI
:class:`GaussianMixture`  :math:`\sum_k \pi_k N(z; \mu_k, \Lambda_k^{-1})`  alpha, pi, mu, Lambda, MAP
:class:`VampMixture`      the same, :math:`\mu_k \sim q(\mu; u_k)`          alpha, pi, u, Lambda, MAP
:class:`StudentMixture`   :math:`\sum_k \pi_k t_\nu(z; \mu_k, \Lambda_k)`     alpha, pi, mu, Lambda, MAP
========================  ================================================  =========================================

The sites are ``alpha``, ``log_pi`` (and ``pi``), ``mu``, ``precision_tril`` (and ``precision``), ``c`` and ``z``.
:class:`Prior` says what your own prior has to define.
"""

from pyro_vmm.priors.base import EXPECTATIONS, Expectation, Places, Prior, component, latent
from pyro_vmm.priors.covariances import COVARIANCES, Covariance
from pyro_vmm.priors.hyperpriors import HyperPrior
from pyro_vmm.priors.mixtures import RESPONSIBILITIES, GaussianMixture, Responsibilities, StudentMixture, VampMixture
from pyro_vmm.priors.pseudo_inputs import Centres
from pyro_vmm.priors.registry import PRIORS, prior_class
from pyro_vmm.priors.simple import StandardNormal, VampPrior

__all__ = [
    "COVARIANCES",
    "EXPECTATIONS",
    "PRIORS",
    "RESPONSIBILITIES",
    "Centres",
    "Covariance",
    "Expectation",
    "GaussianMixture",
    "HyperPrior",
    "Places",
    "Prior",
    "Responsibilities",
    "StandardNormal",
    "StudentMixture",
    "VampMixture",
    "VampPrior",
    "component",
    "latent",
    "prior_class",
]
