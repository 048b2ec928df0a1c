"""The precision of the networks in training; densities, mixtures and answers always have that of the parameters.

- "float32": full float32, whatever is set in ``torch.backends``;
- "bf16": automatic mixed precision with bfloat16, which has 8 bits of mantissa. Products of matrices take half the time
  on CPUs with instructions for it: x86 with AVX512-BF16 (AMD from Zen 4, Intel from Cooper Lake on) or AMX;
- "tf32": linear layers round their inputs to 10 bits of mantissa, on GPUs that do so fast (NVIDIA, from Ampere on), in
  both directions.

"tf32", and "bf16" on a GPU, are experimental: they have never run there yet. Both are for models of float32; the
outputs of the networks are float32 again.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_vmm.runtime.checks import check_choice

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)

# From torch 2.9 on the precision of matrix products has a name. Comparing versions takes time, so it happens once.
NAMED_PRECISION = torch.__version__ >= "2.9"

_precision: ContextVar[str] = ContextVar("precision of the networks", default="float32")


@contextmanager
def network_precision(precision: Precision) -> Iterator[None]:
    """In this context, networks compute in one of ``PRECISIONS``, and products elsewhere are not rounded to TF32."""
    check_choice("precision", precision, PRECISIONS)
    token = _precision.set(precision)
    try:
        with _matmul("ieee"):
            yield
    finally:
        _precision.reset(token)


def warn_if_slow(precision: Precision, device: torch.device) -> None:
    """Warn of bfloat16 on a CPU that has to emulate it."""
    if precision == "bf16" and device.type == "cpu" and multiplies_bfloat16() is False:
        warnings.warn(
            "precision='bf16' is likely to be slower than 'float32' on this CPU, which has no instructions for it "
            "(AVX512-BF16 or AMX)",
            UserWarning,
            stacklevel=2,
        )


def multiplies_bfloat16() -> bool | None:
    """Whether this CPU has instructions for products of bfloat16; None if torch does not say."""
    # Older torch lacks the function. Of other processors than x86 it knows other things.
    found = getattr(torch.cpu, "get_capabilities", dict)()
    if found.get("architecture") != "x86_64":
        return None
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def in_precision(x: Tensor, *layers: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply layers to x, one after the other, in the precision that :func:`network_precision` sets."""
    contexts = {"bf16": lambda: torch.autocast(x.device.type, torch.bfloat16), "tf32": _TF32Layers}
    with contexts.get(_precision.get(), nullcontext)():
        h = reduce(lambda h, layer: layer(h), layers, x)
    return h.float() if h.dtype == torch.bfloat16 else h


@contextmanager
def _matmul(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Matrix products of float32 on CUDA devices in "ieee" or "tf32" precision."""
    setting, (name, value) = torch.backends.cuda.matmul, ("allow_tf32", precision == "tf32")
    if NAMED_PRECISION:
        name, value = "fp32_precision", precision
    before = getattr(setting, name)
    setattr(setting, name, value)
    try:
        yield
    finally:
        setattr(setting, name, before)


class _TF32Layers(TorchFunctionMode):
    """Computes linear layers by :class:`_TF32Linear`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _TF32Linear.apply(input, weight, bias)


class _TF32Linear(torch.autograd.Function):
    """A linear layer whose products, forwards and backwards, are in TF32.

    Torch has one setting for all products, so each of these changes it and sets it back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with _matmul("tf32"):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        with _matmul("tf32"):
            if ctx.needs_input_grad[0]:
                by_x = gradient @ weight
            if ctx.needs_input_grad[1]:
                by_weight = gradient.flatten(end_dim=-2).mT @ x.flatten(end_dim=-2)
            if ctx.needs_input_grad[2]:
                by_bias = gradient.flatten(end_dim=-2).sum(0)
        return by_x, by_weight, by_bias
