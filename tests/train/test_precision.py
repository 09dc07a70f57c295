"""The precision that `auto` is: by the processor's flags, said, recorded and kept."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from vae_train import loop, precision, results
from vae_train.cli import main
from vae_train.config import PRESETS

CPU = torch.device("cpu")
SMALL = "--dataset digits --preset resnet --hidden 4,4 --dense 8 --latent-dim 2 --epochs 1 --no-download"
HERE = ("--device", "cpu", "--threads", 1)


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the processor have these flags alone: `flags("avx2", "avx512_bf16")`."""

    def have(*names: str) -> None:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"architecture": "any", **dict.fromkeys(names, True)}
        )

    return have


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("avx2", "fma3"), "float32"),
        (("avx512_f", "avx512_vnni"), "float32"),
        (("avx2", "avx_ne_convert"), "float32"),  # which converts, and multiplies nothing
        (("avx512_f", "avx512_bf16"), "bfloat16"),
        (("avx512_f", "amx_tile", "amx_bf16"), "bfloat16"),
        (("neon", "fp16_arith"), "float32"),
        (("neon", "bf16"), "bfloat16"),
        ((), "float32"),
    ],
)
def test_flags_choose(flags: Callable[..., None], names: tuple[str, ...], chosen: str) -> None:
    """bfloat16 where there are products of it, and the reason names the instructions."""
    flags(*names)
    found, why = precision.choose(CPU)
    assert found == chosen
    assert chosen == "float32" or names[-1] in why
    assert precision.resolved("auto", CPU) == chosen
    assert [precision.resolved(given, CPU) for given in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_doubt_is_float32(flags: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch that does not know the flags, or that multiplies without oneDNN, computes in float32."""
    flags("avx512_bf16")
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert precision.choose(CPU)[0] == "float32"
    assert precision.choose(CPU)[0] == "bfloat16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision.choose(CPU) == ("float32", f"PyTorch {torch.__version__} does not say what the processor has")


@pytest.mark.skipif(
    os.uname().machine != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads the flags of Linux on x86-64"
)
def test_flags_are_those_of_the_kernel() -> None:
    """What PyTorch says of this processor is what Linux says."""
    known = Path("/proc/cpuinfo").read_text().split()
    expected = "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(known) else "float32"
    assert precision.choose(CPU)[0] == expected


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked_for_what_it_does_itself(
    monkeypatch: pytest.MonkeyPatch, flags: Callable[..., None], native: bool, chosen: str
) -> None:
    """On a GPU the processor's flags do not count, nor does what CUDA emulates."""
    flags(*(() if native else ("avx512_bf16",)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision.choose(torch.device("cuda", 0))[0] == chosen


def test_only_the_resnets_leave_it_open() -> None:
    """Small matrix products gain little, so that the other presets are the same on all machines."""
    assert {name for name, preset in PRESETS.items() if preset.optimiser.precision == "auto"} == {
        "resnet",
        "resnet-colour",
    }
    assert {preset.optimiser.precision for preset in PRESETS.values()} == {"auto", "float32"}


def test_a_run_says_records_and_keeps_it(
    command: Any, flags: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Begun where there are no such instructions, stopped, and gone on with where there are: the weights of float32."""
    monkeypatch.setattr(results, "finish", lambda *given: None)
    real, steps = loop.step, iter(range(1, 10**6))

    def stopping(*given: Any) -> Any:
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    flags("avx512_bf16")
    plain = command(main, *SMALL.split(), *HERE, "--precision", "float32", "--out", tmp_path / "plain")
    fast = command(main, *SMALL.split(), *HERE, "--out", tmp_path / "fast")
    assert (plain.code, fast.code) == (0, 0)
    assert "products" not in plain.err
    assert "\nproducts in bfloat16: the processor has avx512_bf16\n" in fast.err

    flags("avx2")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "step", stopping)
        stopped = command(main, *SMALL.split(), *HERE, "--out", tmp_path / "run")
    assert stopped.code == 143
    assert "\nproducts in float32: the processor has no instructions for bfloat16\n" in stopped.err
    flags("avx512_bf16")
    assert command(main, "--resume", tmp_path / "run", *HERE).code == 0

    recorded = {
        name: json.loads((tmp_path / name / "config.json").read_text())["config"]["optimiser"]["precision"]
        for name in ("plain", "fast", "run")
    }
    assert recorded == {"plain": "float32", "fast": "bfloat16", "run": "float32"}
    weights, expected, other = (
        safetensors.torch.load_file(tmp_path / name / "best.safetensors") for name in ("run", "plain", "fast")
    )
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert not all(torch.equal(value, expected[name]) for name, value in other.items())


def test_slow_products_are_said(
    command: Any, flags: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--precision bfloat16 is done as asked where there are no instructions for it, with a word on that."""
    monkeypatch.setattr(results, "finish", lambda *given: None)
    flags("avx2")
    done = command(main, *SMALL.split(), *HERE, "--precision", "bfloat16", "--out", tmp_path / "run")
    assert done.code == 0
    assert "vae-train: note: products in bfloat16, but the processor has no instructions for " in done.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["optimiser"]["precision"] == "bfloat16"
