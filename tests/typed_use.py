# pyright: basic, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker says of users' code: it takes what is right, and refuses each line that is marked as wrong.

Not run: pyright reads it. A mark that is not needed is an error, too.
"""

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.analysis import Explanation
from pyro_vmm.data import load_file
from pyro_vmm.inference import TrainingConfig
from pyro_vmm.likelihoods import Normal
from pyro_vmm.networks import GaussianEncoder, mlp
from pyro_vmm.priors import VampMixture

VMM()
VMM(50, 5, epochs=3, batch_size="auto", scaling=None, init="k-means++", m_prior="batch")
SingleCellVMM()
SingleCellVMM("donor", library="inferred", patience=None, init=["cell 1", "cell 2"])
TrainingConfig(precision="bf16", capture="auto")
GaussianEncoder(mlp(2, [3]), 3, 2, covariance="diagonal")

VMM(covariance="ful")  # pyright: ignore[reportArgumentType]
VMM(epochs="aut")  # pyright: ignore[reportArgumentType]
VMM(dtype="float16")  # pyright: ignore[reportArgumentType]
VMM(latent_dims=5)  # pyright: ignore[reportCallIssue]
SingleCellVMM(library="total")  # pyright: ignore[reportArgumentType]
SingleCellVMM(pseudo_batch="held")  # pyright: ignore[reportArgumentType]
TrainingConfig(monitor="elbo")  # pyright: ignore[reportArgumentType]
GaussianEncoder(mlp(2, [3]), 3, 2, covariance_start="zero")  # pyright: ignore[reportArgumentType]


def choices(found: Explanation, prior: VampMixture) -> None:
    """Each choice is a type of its own."""
    VMM(responsibilities="held", expectation="sampled", component_covariance="tied", likelihood_options={})
    Normal((4,), "per_feature")
    load_file("x.csv", header="no", decimal=",")
    found.ranked("largest")
    found.top(0, order="higher")
    VMM(responsibilities="soft")  # pyright: ignore[reportArgumentType]
    VMM(expectation="exact")  # pyright: ignore[reportArgumentType]
    VMM(m_prior="rows")  # pyright: ignore[reportArgumentType]
    SingleCellVMM(responsibilities="soft")  # pyright: ignore[reportArgumentType]
    Normal((4,), "per_row")  # pyright: ignore[reportArgumentType]
    load_file("x.csv", header="maybe")  # pyright: ignore[reportArgumentType]
    load_file("x.csv", decimal=";")  # pyright: ignore[reportArgumentType]
    found.ranked("lower")  # pyright: ignore[reportArgumentType]
    found.top(0, order="lower")  # pyright: ignore[reportArgumentType]
    prior.expectation = "exact"  # pyright: ignore[reportAttributeAccessIssue]
