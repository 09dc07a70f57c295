"""How far float32 may be off: any network in float64, with the errors of float32 drawn at random and added.

Each operation's result is off by an error of its own between -u and u of it, u = 2^-24, as rounding to nearest is, any
of them as likely (the model of Higham and Mary 2019, doi:10.1137/18M1226312, made definite). In particular:

- A sum of n terms t that are not 0, added one after the other in no particular order (Higham and Mary 2020,
  doi:10.1137/20M1314355): its k-th partial sum is k/n of the sum S, and a random walk that ends at S. The squares of
  all of them add up to n (S^2 / 3 + |t|^2 / 6), |t|^2 the sum of the squared terms; the error is normal, its variance
  u^2 / 3 of that. In products of matrices and in convolutions the terms are rounded too: |t|^2 more. Adding in blocks,
  as processors do, is better than that.
- A sum in pairs, as NumPy adds: 2 S^2 + log2(n) |t|^2.
- A running sum is off by the errors of its partial sums, the square root of the sum of their squares.
- A variance is one of raw squares, since it may be computed as their mean less the mean's square.
- x + y: u of the largest of x, y and x + y, since graphs fold and reorder additions.
- Functions such as exp and log: 4 u, two units in the last place, about what fast libraries keep. Those computed from
  1 +- exp(x), such as sigmoid and tanh: 4 u of 1, or of the result where it is larger.
- Choosing, moving and comparing numbers is exact.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vae_train.vae import VAE

UNIT = 2.0**-24 / math.sqrt(3)  # the standard deviation of an error anywhere between -u and u

_EXACT = frozenset(
    """_local_scalar_dense _reshape_alias _to_copy _unsafe_view abs alias amax amin arange as_strided cat ceil clamp
    clamp_max clamp_min clone constant_pad_nd copy detach embedding empty empty_like expand eye fill flip floor full
    full_like gather hardtanh index index_select lift_fresh masked_fill max max_pool2d_with_indices maximum min minimum
    narrow_copy neg new_empty new_full new_ones new_zeros ones ones_like permute pixel_shuffle pixel_unshuffle
    reflection_pad2d relu repeat replication_pad2d roll round scalar_tensor select sign slice sort split
    split_with_sizes squeeze stack t topk transpose tril triu unbind unfold unsqueeze upsample_nearest2d view where
    zero zeros zeros_like""".split()  # noqa: SIM905
)
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution"})
_POOLS = frozenset({"avg_pool2d", "_adaptive_avg_pool2d", "upsample_bilinear2d", "upsample_bicubic2d"})
_FUNCTIONS = frozenset(
    """exp exp2 expm1 log log2 log10 log1p pow rsqrt sin cos tan asin acos atan atan2 sinh cosh asinh acosh
    atanh""".split()  # noqa: SIM905
)
_ABOUT_ONE = frozenset({"sigmoid", "tanh", "erf", "softplus", "elu", "expm1", "log1p"})
_TAKEN_APART = (  # what hides one of these
    """silu gelu mish std logsumexp linalg_vector_norm mv dot addr addcmul addcdiv lerp _softmax _log_softmax
    log_sigmoid_forward native_layer_norm native_group_norm native_batch_norm _fused_rms_norm _weight_norm_interface
    _native_batch_norm_legit_no_training""".split()  # noqa: SIM905
)


class Precise(nn.Module):
    """A VAE in float64, whatever types its code names, which can also draw what float32 might give."""

    vae: VAE

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        self.weights = {
            ".".join(filter(None, ("vae", path, name))): _double(weight.detach())
            for path, module in vae.named_modules()  # each slot once, also of layers and weights in several places
            for name, weight in chain(
                module.named_parameters(recurse=False, remove_duplicate=False),
                module.named_buffers(recurse=False, remove_duplicate=False),
            )
        }

    def evaluate(self, function: Any, *inputs: Any, seed: int | None = None, in_pairs: bool = False) -> Any:
        """What `function`, a part or a method of the VAE, returns for `inputs`, in float64.

        With a seed: one draw of what float32 might give instead. in_pairs: `function` stands for our own NumPy and not
        for a graph: sums are added in pairs, and expm1 and log1p are as accurate as they should be.
        """
        fast = torch.backends.mha.get_fastpath_enabled()  # it makes one operation of a whole layer
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Float64(seed, in_pairs):
                return torch.func.functional_call(
                    self, self.weights, (function, *tree_map(_double, inputs)), tie_weights=False
                )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def forward(self, function: Any, *inputs: Any) -> Any:
        """The function's result: what `functional_call` calls once it has lent the weights to the VAE."""
        return function(*inputs)


class _Float64(TorchDispatchMode):
    """Computes every operation in float64; with a seed, adds an error of float32 to each result."""

    def __init__(self, seed: int | None, in_pairs: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.in_pairs = in_pairs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's result."""
        args, kwargs = tree_map(_double, (args, kwargs or {}))
        if self.generator is None:
            return func(*args, **kwargs)
        if (parts := _parts().get(func)) is not None:
            with self:
                return parts(*args, **kwargs)
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        name = name if name.endswith("__") else name.removesuffix("_")  # the same in place
        results = [out] if isinstance(out, Tensor) else list(out)
        if name not in _EXACT and not func.is_view and results[0].is_floating_point():
            for result, error in zip(results, self._errors(name, func, args, kwargs, results), strict=True):
                noise = torch.randn(result.shape, generator=self.generator)
                result.add_(noise.mul_(error), alpha=UNIT)
        return out

    def _errors(self, name: str, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> list[Tensor]:
        """The standard deviation of each result's error, in units of UNIT."""
        out = results[0]
        n = args[0].numel() // max(1, out.numel()) if args and isinstance(args[0], Tensor) else 1  # terms of a sum
        if name in _PRODUCTS:
            squares, n = func(*tree_map(_square, args), **tree_map(_square, kwargs)), _terms(name, args)
            return [(n * (out.square() / 3 + squares / 6) + squares).sqrt()]
        if name in ("sum", "mean"):
            squares = func(args[0].square(), *args[1:], **kwargs) / (1 if name == "sum" else n)
            walk, end = (math.log2(n), 2.0) if self.in_pairs else (n / 6, n / 3)
            return [(end * out.square() + walk * squares).sqrt()]
        if name == "cumsum":
            return [func(out.square(), *args[1:], **kwargs).sqrt()]
        if name in ("var", "var_mean"):
            var, mean = torch.var_mean(*args, **kwargs)
            square = mean.square()
            raw = var + square
            of_mean = n / 3 * square + raw / 6
            return [(n / 3 * raw.square() + 4 * square * of_mean).sqrt(), of_mean.sqrt()][: len(results)]
        if name in _POOLS:
            return [func(args[0].abs(), *args[1:], **kwargs) * math.sqrt(max(4, n) / 3)]
        if name in ("add", "sub", "rsub"):
            return [torch.stack([torch.as_tensor(x).abs().expand_as(out) for x in (out, *args[:2])]).amax(dim=0)]
        if name in _ABOUT_ONE and not (self.in_pairs and name in ("expm1", "log1p")):
            return [4 * out.abs().clamp(min=1)]
        return [(4 if name in _FUNCTIONS else 1) * result.abs() for result in results]


@cache
def _parts() -> dict[Any, Callable[..., Any]]:
    """PyTorch's own way to write such an operation in simpler ones."""
    return dict(get_decompositions([getattr(torch.ops.aten, name) for name in _TAKEN_APART]))


def _terms(name: str, args: Any) -> Any:
    """How many products that are not 0 each number of a product of matrices, or of a convolution, sums up, at most."""
    if name != "convolution":
        return (args[0 if name in ("mm", "bmm") else 1] != 0).sum(dim=-1, keepdim=True)
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    if not transposed and groups == 1:  # weight [out, in, ...]
        ones = torch.ones(1, *weight.shape[1:])
        return torch.convolution((x != 0).float(), ones, None, stride, padding, dilation, False, [0] * len(stride), 1)
    if not transposed:
        return math.prod(weight.shape[1:])
    sides = [math.ceil(side / step) for side, step in zip(weight.shape[2:], stride, strict=True)]
    return weight.shape[0] // groups * math.prod(sides)  # weight [in, out / groups, ...]


def _double(value: Any) -> Any:
    """Numbers and types of floating point in float64; anything else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _square(value: Any) -> Any:
    """Squares of what a product is linear in: tensors, and the factors beta and alpha."""
    if isinstance(value, Tensor):
        return value.float().square()
    return value * value if isinstance(value, float) else value
