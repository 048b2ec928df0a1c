"""The floor of a computation: the cost of its matrix products alone, on the same operands."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.baddbmm.default: torch.bmm,
}


class MatrixProducts(TorchDispatchMode):
    """Records the matrix products of the code in its context, including backward passes on the CPU.

    Attributes:
        operands: of each product, the function and its two factors.
        flop: floating-point operations, two for each multiplication.
    """

    def __init__(self):
        super().__init__()
        self.operands: list[tuple[Callable, Tensor, Tensor]] = []
        self.flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            a, b = args[-2:]
            self.operands.append((PRODUCTS[func], a.detach(), b.detach()))
            self.flop += 2 * a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))

    def floor(self) -> Callable[[], None]:
        """A function that computes these products and nothing else, without an allocation."""
        calls = [(product, a, b, product(a, b)) for product, a, b in self.operands]

        def products() -> None:
            for product, a, b, out in calls:
                product(a, b, out=out)

        return products


def of(call: Callable[[], object]) -> MatrixProducts:
    """The matrix products of one call."""
    with MatrixProducts() as products:
        call()
    return products
