"""The paper's own numbers, mean and standard deviation, that the tables show beside ours.

Stirn & Knowles (2025), https://arxiv.org/abs/2402.04412. So far MNIST's row of the VMM; other cells stay empty.
"""

#: By artefact, data set and method.
PAPER: dict[str, dict[tuple[str, str], dict[str, tuple[float, float]]]] = {
    "table1": {
        ("mnist", "vmm"): {
            "utilised_clusters": (13.9, 2.1),
            "accuracy_by_exemplar": (0.960, 0.006),
            "nmi": (0.899, 0.015),
        }
    }
}
