"""The protocol of a prior on z, and what all priors share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from typing_extensions import Self

from pyro_vmm.distributions import Mixture
from pyro_vmm.priors.covariances import COVARIANCES, Covariance
from pyro_vmm.priors.pseudo_inputs import Centres, PseudoInputs
from pyro_vmm.runtime.checks import check_choice, is_finite

Expectation = Literal["analytic", "sampled"]
EXPECTATIONS = get_args(Expectation)
#: The settings of estimators that :meth:`Prior.build` gets, each with the name of its argument there.
HANDED = {
    "hyperprior": "hyperprior",
    "m_prior": "m_prior",
    "expectation": "expectation",
    "responsibilities": "responsibilities",
    "component_covariance": "covariance",
    "component_df": "df",
}
OF_PSEUDO_INPUTS = ("train_pseudo_inputs", "pseudo_batch")
#: All settings of estimators that have an effect on some priors alone.
SETTINGS = (*HANDED, *OF_PSEUDO_INPUTS, "init_centres")
MPrior = float | Literal["batch"]


def check_m_prior(name: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is a positive, finite number or "batch"."""
    if not ((isinstance(value, str) and value == "batch") or (is_finite(value) and value > 0)):
        raise ValueError(f"{name}={value!r} should be a positive number or 'batch'")


def component(p_z: Mixture) -> TorchDistribution:
    """p(z | c), after the site ``c`` (enumerated in parallel); a mixture of one component has no ``c``."""
    if p_z.n_components == 1:
        return p_z
    q_c = dist.Categorical(logits=p_z.log_weights)
    # Not normalised: those of a part of the components sum to less than one.
    q_c.logits = p_z.log_weights  # pyright: ignore[reportAttributeAccessIssue]
    c = pyro.sample("c", q_c, infer={"enumerate": "parallel"})
    return p_z.component(c)


def latent(p_z: Mixture, obs: Tensor | None = None) -> Tensor:
    """The sites ``c`` and ``z``, see :func:`component`."""
    return pyro.sample("z", component(p_z), obs=obs)


class Places(NamedTuple):
    """Where n components should be, from encoded rows of data.

    Arguments:
        count: the number of rows that each explains, (n,).
        loc: their means, (n, D).
        covariance: the covariances of draws from their q(z; x), (n, D, D).
        rows: rows of data near each mean, (n, c, ...).
    """

    count: Tensor
    loc: Tensor
    covariance: Tensor
    rows: Tensor


class Prior(nn.Module, ABC):
    """The protocol of a prior: what the two steps, elimination, settling, numbering, files and estimators need from it.

    ``forward(encoder)`` returns p(z), a :class:`~pyro_vmm.distributions.Mixture`. The encoder is an argument because
    the prior does not own it: another step trains it.

    ============ ==================================================================================================
    caller       uses
    ============ ==================================================================================================
    SVI step     ``trained_by_map``, ``expectation``; :meth:`forward`, :meth:`sampled`
    MAP step     the same; :meth:`centres`, :meth:`model` and :meth:`guide`, which consist of :meth:`hierarchy`,
                 :meth:`hierarchy_guide` and :meth:`per_row`
    elimination  ``can_eliminate``, ``pi_logits``, ``m_prior``; :meth:`component_tensors`, :meth:`subset`,
                 :meth:`absorb`
    settling     ``can_place``, ``covariance``; :meth:`component_tensors`, :meth:`clustering`, :meth:`place`
    numbering    :meth:`forward`, :meth:`clustering`, :meth:`reorder`
    files        parameters and persistent buffers; for an object also attributes that are numbers, names or shapes
    estimators   ``has_clusters``, ``has_granularity``, ``free_centres``, ``takes``; :meth:`build`, :meth:`check`
    ============ ==================================================================================================

    Your own prior

    - defines ``forward``, and :meth:`build` for estimators to make it from its name or class;
    - states in ``per_component`` which parameters and buffers have a row for each component;
    - sets those of the class attributes below that differ;
    - defines :meth:`hierarchy` and :meth:`hierarchy_guide` if it has sites above the plate of data, and :meth:`centres`
      if the MAP step can take expectations over q(mu) in closed form;
    - defines :meth:`subset` if components can leave training, with :meth:`rows_of`;
    - defines :meth:`place` if components can be moved to where the rows need them after training.

    A subclass of one of the package's priors inherits all of this. A name in :data:`PRIORS` makes it known to the
    estimators and to the command line: ``PRIORS["tied"] = Tied``, or an entry point of the group ``pyro_vmm.priors``.
    For a class that lacks a part, an error lists what is missing, before any training.

    Arguments:
        latent_dim: D.
        n_components: K.
    """

    origin: Tensor

    #: Whether the parameters belong to the MAP step (else to the SVI step, with the networks).
    trained_by_map = False
    #: Whether components can leave training, see :meth:`subset`. This needs ``trained_by_map``, the parameter
    #: ``pi_logits``, log pi (K,) up to a constant, and ``m_prior``, a number or "batch".
    can_eliminate = False
    #: Whether ``m_prior`` controls the number of clusters.
    has_granularity = False
    #: Whether there are several components; otherwise ``n_components`` is 1, whatever an estimator's setting.
    has_clusters = True
    #: Whether components can be moved to where encoded rows need them, see :meth:`place`.
    can_place = False
    #: The family of the components' covariances; :func:`~pyro_vmm.inference.settle` moves components by its evidence.
    covariance: Covariance = COVARIANCES["full"]
    #: Whether the centres are a parameter ``mu`` (K, D), which may start at encoded rows.
    free_centres = False
    #: The settings of estimators that this prior uses. Of the others an estimator refuses all values but the default,
    #: and :meth:`build` does not get them. A prior with ``free_centres`` also uses ``init_centres``.
    takes: tuple[str, ...] = (*HANDED, *OF_PSEUDO_INPUTS)
    #: How the training steps take the expectation over q(mu), one of ``EXPECTATIONS``.
    expectation: Expectation = "analytic"
    #: The names of parameters and buffers with a row for each component, in addition to those of base classes. A
    #: submodule states its own in an attribute of this name. All components share the others.
    per_component: tuple[str, ...] = ()
    #: Names that a base class states in ``per_component``, and that components of this class share. An object sets it
    #: itself where it depends on the object's arguments.
    shared: tuple[str, ...] = ()

    def __init__(self, latent_dim: int, n_components: int):
        super().__init__()
        if latent_dim < 1 or n_components < 1:
            raise ValueError(f"latent_dim={latent_dim} and n_components={n_components} should be at least 1")
        self.latent_dim, self.n_components = latent_dim, n_components
        # Holds the dtype and the device of a prior without parameters.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    @classmethod
    def build(cls, latent_dim: int, pseudo_inputs: PseudoInputs, settings: Mapping) -> "Prior":
        """A prior from rows and settings, as the estimators make it.

        Arguments:
            latent_dim: D.
            pseudo_inputs: a module of :mod:`pyro_vmm.priors.pseudo_inputs` that starts at K rows of data. A prior
                without pseudo-inputs takes K from it, ``len(pseudo_inputs)``.
            settings: the estimator's settings that the class ``takes``, under their names in ``HANDED``; ``covariance``
                and ``df`` only if the user sets them; and the arguments of a ``functools.partial`` of the class.
        """
        raise NotImplementedError(f"{cls.__name__} does not define build")

    @abstractmethod
    def forward(self, encoder: nn.Module) -> Mixture:
        """p(z), with the centres integrated out."""

    def clustering(self, encoder: nn.Module) -> Mixture:
        """The mixture whose component log-densities give q(c | z); p(z), unless there is a q(mu)."""
        return self(encoder)

    def sampled(self, encoder: nn.Module) -> Mixture:
        """p(z) with the centres drawn from q(mu) instead of integrated out."""
        return self(encoder)

    def centres(self, encoder: nn.Module) -> Centres | None:
        """q(mu), for the MAP step's expectations over it in closed form; None if there are none."""
        return None

    # Components

    def component_tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers with a row for each component, by name.

        Raises:
            ValueError: a name in ``per_component`` does not exist, or its tensor does not have K rows.
        """
        found: dict[str, Tensor] = {}
        registered = dict(_registered(self))
        for name in self._stated():
            if name not in registered:
                raise ValueError(
                    f"{type(self).__name__} states {name!r} in per_component, but has no parameter or buffer of that "
                    "name; a name that only its base class has belongs in shared"
                )
            tensor = registered[name]
            if tensor is None or any(tensor is other for other in found.values()):
                continue
            if tensor.dim() == 0 or len(tensor) != self.n_components:
                raise ValueError(
                    f"{type(self).__name__} states {name!r} in per_component, but its shape {tuple(tensor.shape)} does "
                    f"not begin with n_components={self.n_components}; what all components share belongs in shared"
                )
            found[name] = tensor
        return found

    def _stated(self) -> Iterator[str]:
        """The names that this prior and its submodules state in ``per_component``, as seen from this prior."""
        for prefix, module in self.named_modules():
            names: dict[str, None] = {}
            for cls in reversed(type(module).__mro__):
                names = {name: None for name in names if name not in vars(cls).get("shared", ())}
                names |= dict.fromkeys(vars(cls).get("per_component", ()))
            shared = vars(module).get("shared", ())
            yield from (_joined(prefix, name) for name in names if name not in shared)

    @classmethod
    def missing(cls) -> list[str]:
        """The methods that the class has to define and does not; :meth:`build` is for estimators alone."""
        lacks = sorted(cls.__abstractmethods__)
        if cls.can_eliminate and cls.subset is Prior.subset:
            lacks.append("subset")
        if cls.can_place and cls.place is Prior.place:
            lacks.append("place")
        return lacks

    def check(self) -> None:
        """Raise ``ValueError`` unless the prior has what its class attributes say it has."""
        if lacks := self.missing():
            raise ValueError(f"{type(self).__name__} does not define {', '.join(lacks)}, see pyro_vmm.priors.Prior")
        check_choice("expectation", self.expectation, EXPECTATIONS)
        for stated, needed in {"free_centres": ("mu",), "can_eliminate": ("pi_logits", "m_prior")}.items():
            lacks = [name for name in needed if getattr(self, stated) and not hasattr(self, name)]
            if lacks:
                raise ValueError(f"{type(self).__name__} lacks {', '.join(lacks)}, which it needs for {stated}=True")
        per_component = self.component_tensors()
        if self.can_eliminate and not (self.trained_by_map and "pi_logits" in per_component):
            needs = "trained_by_map=True and 'pi_logits' in per_component"
            raise ValueError(f"{type(self).__name__} has can_eliminate=True, which needs {needs}")

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: component k is the former ``order[k]``, (K,)."""
        for tensor in self.component_tensors().values():
            tensor.copy_(tensor[order])

    def subset(self, kept: Tensor) -> Self:
        """A prior of components ``kept`` (n,) alone, with parameters of its own, to train in place of this one.

        :meth:`rows_of` makes it. It has to keep the weights of the other components, which stay a part of p(z).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define subset")

    def rows_of(self, kept: Tensor) -> Self:
        """A copy with the components ``kept`` (n,): their rows of per-component tensors, and all shared tensors."""
        copied = copy.deepcopy(self)
        names = list(_registered(copied))
        for tensor in copied.component_tensors().values():
            rows = tensor.detach()[kept].clone()
            if isinstance(tensor, nn.Parameter):
                rows = nn.Parameter(rows, requires_grad=tensor.requires_grad)
            for name in (name for name, each in names if each is tensor):  # it may have several names
                path, _, last = name.rpartition(".")
                setattr(copied.get_submodule(path), last, rows)
        copied.n_components = len(kept)
        return copied

    @torch.no_grad()
    def absorb(self, subset: "Prior", kept: Tensor) -> None:
        """Copy the trained values of :meth:`subset`; the other components stay unchanged."""
        own, learned = self.component_tensors(), subset.component_tensors()
        for name, tensor in own.items():
            tensor[kept] = learned[name]
        per_component, kept_in_files = {id(tensor) for tensor in own.values()}, subset.state_dict()
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if name in kept_in_files and id(tensor) not in per_component:
                tensor.copy_(kept_in_files[name])

    def place(self, places: Places, slots: Tensor, encoder: nn.Module) -> None:
        """Move components ``slots`` (n,) to n places, and take all weight from the others."""
        raise NotImplementedError(f"{type(self).__name__} does not define place")

    # The Pyro pair

    def hierarchy(
        self,
        rows: int,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        minibatch: int | None = None,
    ) -> Mixture:
        """Declare the sites above the plate of data, for the model.

        ``rows`` is the size of that plate; ``minibatch`` is M of the whole minibatch, if the rows are a part of it.
        """
        return self(encoder)

    def hierarchy_guide(self, encoder: nn.Module | None = None, centres: Centres | None = None) -> None:
        """Declare the same sites for the guide."""

    def model(
        self,
        z: Tensor | None = None,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        rows: int = 1,
        log_factors: Tensor | None = None,
    ) -> Tensor:
        """The sites above the plate, then c and z (M, D) for every row; given z, M times the objective of the MAP step.

        Arguments:
            z: draws from q(z; x), (M, D); None to sample.
            encoder: the encoder that guides the centres.
            centres: q(mu), for expectations over it in closed form; None to sample mu.
            rows: the number of rows to draw if z is None. If z is one process's part of a minibatch, the number of rows
                of the whole minibatch.
            log_factors: the terms to add to log pi in each row, (M, K); see :mod:`pyro_vmm.priors.balance`.
        """
        held = rows if z is None else len(z)
        p_z = self.hierarchy(held, encoder, centres, max(rows, held))
        if log_factors is not None:
            p_z = p_z.reweighted(log_factors)
        with pyro.plate("data", held):
            return self.per_row(p_z, z)

    def per_row(self, p_z: Mixture, z: Tensor | None) -> Tensor:
        """The sites inside the plate of data, for the model: c and z (M, D), given or drawn."""
        return latent(p_z, obs=z)

    def guide(
        self,
        z: Tensor | None = None,
        encoder: nn.Module | None = None,
        centres: Centres | None = None,
        rows: int = 1,
        log_factors: Tensor | None = None,
    ) -> None:
        """The latent sites above the plate; c is enumerated. The signature is the model's."""
        self.hierarchy_guide(encoder, centres)


def _registered(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """All parameters and buffers by name, including those registered as None."""
    for prefix, each in module.named_modules():
        for name, tensor in {**each._parameters, **each._buffers}.items():
            yield _joined(prefix, name), tensor


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
