"""In which precision a device computes products: what `auto` stands for.

The processor's flags decide, and not a measurement, so that equal seeds give equal weights on one machine.
"""

import torch

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # for products of bfloat16: x86-64's two, and ARM's


def choose(device: torch.device) -> tuple[str, str]:
    """bfloat16 where the device has instructions for it, float32 where it has none or that is not known; and why.

    Without them PyTorch converts forth and back, several times slower than float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "the GPU has it") if native else ("float32", "the GPU has no bfloat16")
    if not torch.backends.mkldnn.is_available():
        return "float32", "this PyTorch is without oneDNN"
    if not hasattr(torch.cpu, "get_capabilities"):
        return "float32", f"PyTorch {torch.__version__} does not say what the processor has"
    flags = torch.cpu.get_capabilities()
    if found := [name for name in _INSTRUCTIONS if flags.get(name)]:
        return "bfloat16", f"the processor has {' and '.join(found)}"
    return "float32", "the processor has no instructions for bfloat16"


def resolved(precision: str, device: torch.device) -> str:
    """The precision itself, or what `auto` is on this device."""
    return choose(device)[0] if precision == "auto" else precision
