"""What several files of tests need besides fixtures."""

from functools import partial

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_vmm.networks import GaussianEncoder

#: Its full covariances are not diagonal even before training.
CorrelatedEncoder = partial(GaussianEncoder, covariance_start="random")

#: The sample sites of each prior's model: of the hyper-priors, and all of them.
HIERARCHY = {"alpha", "log_pi", "pi", "mu", "precision_tril", "precision"}
SITES = {
    "standard_normal": {"z", "x"},
    "vamp": {"c", "z", "x"},
    "gmm": HIERARCHY | {"c", "z", "x"},
    "vmm": HIERARCHY | {"c", "z", "x"},
}


def drawn(figure: Figure) -> Figure:
    """Draw as `save` does, for what matplotlib computes late can warn too; returns the figure."""
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    return figure
