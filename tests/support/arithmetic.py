"""PyTorch that adds up as no processor does: strictly one term after the other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class InOrder(TorchDispatchMode):
    """Adds up products of matrices and convolutions in float32, strictly one term after the other, the bias first.

    No processor is as bad as that. fused: with fused multiply-add, one rounding for each term instead of two.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fused = fused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's result."""
        name = func.overloadpacket.__name__
        if name in ("addmm", "mm"):
            a, b = args[-2:]
            start = args[0] if name == "addmm" else torch.zeros(())
            return self.add_up(start.expand(len(a), b.shape[1]), a.T[:, :, None], b[:, None, :])
        if name == "convolution":
            return self.convolve(*args)
        return func(*args, **(kwargs or {}))

    def convolve(
        self, x: Tensor, w: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
    ) -> Tensor:
        """A convolution as a product with unfolded images."""
        assert not transposed
        height, width = nn.functional.conv2d(x[:1], w, bias, stride, padding, dilation).shape[2:]
        columns = nn.functional.unfold(x, w.shape[2:], dilation, padding, stride)  # [batch, terms, places]
        start = bias[None, :, None].expand(len(x), len(w), columns.shape[2])
        terms = columns.transpose(0, 1)[:, :, None, :]  # [terms, batch, 1, places]
        found: Tensor = self.add_up(start, terms, w.flatten(1).T[:, None, :, None]).unflatten(2, (height, width))
        return found

    def add_up(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """total + a[0] b[0] + a[1] b[1] + ..., rounded to float32 after every operation."""
        for x, y in zip(a, b, strict=True):
            total = (total.double() + x.double() * y.double()).float() if self.fused else total + x * y
        return total
