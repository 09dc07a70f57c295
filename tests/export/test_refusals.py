"""Networks that no bundle can hold: the message has the line at fault and what to write instead, and that works."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from vae_export import code_lines, onnx_graph
from vae_runtime.errors import BundleError
from vae_runtime.sessions import Session

WHERE = "write torch.where(condition, a, b), which computes both, instead of branches, loops and checks on values"
SIZES = "write x.shape[0], without int or len, -1 or flatten(1) instead, and the whole batch at once"
AXIS = "write what is done for each observation instead, so that the first axis of every output is the batch"
EACH = "write what is done for each observation instead"
NOISE = "write the distribution's parameters as outputs instead; what samples draws the noise"
TRAINING = "write training=self.training instead"
STATISTICS = "write training=self.training instead, and give it running statistics"
OPERATORS = (
    "write it with operators that ONNX has instead, as (a[:, None] - b).square().sum(-1).sqrt() for torch.cdist(a, b)"
)
TENSORS = "write it with torch's operators on whole tensors instead"


class Branches(nn.Module):
    """A tensor's value decides which way is gone."""

    def forward(self, x: Tensor) -> Tensor:
        """The input or its opposite."""
        positive = x.sum(dim=1) > 0
        if positive.all():
            return x
        return -x


class Chooses(nn.Module):
    """The same without a branch."""

    def forward(self, x: Tensor) -> Tensor:
        """The input or its opposite."""
        positive = x.sum(dim=1, keepdim=True) > 0
        return torch.where(positive, x, -x)


class Halves(nn.Module):
    """A loop that ends when values are small."""

    def forward(self, x: Tensor) -> Tensor:
        """At most 1 everywhere."""
        while x.abs().max() > 1:
            x = x / 2
        return x


class HalvesOnce(nn.Module):
    """A value where it is needed, without a loop."""

    def forward(self, x: Tensor) -> Tensor:
        """Halved where above 1."""
        return torch.where(x.abs() > 1, x / 2, x)


class Checks(nn.Module):
    """A check of values."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        assert x.min() >= 0, "negative pixels"
        return x * 2


class Leaves(nn.Module):
    """The same without the check."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x * 2


class Samples(nn.Module):
    """The mistake that a deterministic bundle forbids: noise drawn inside the graph."""

    def forward(self, x: Tensor) -> Tensor:
        """The input plus noise."""
        sigma = x.exp()
        return x + sigma * torch.randn_like(sigma)


class Draws(nn.Module):
    """The same, written with torch.distributions."""

    def forward(self, x: Tensor) -> Tensor:
        """A draw."""
        return Normal(x, x.exp(), validate_args=False).rsample()


class Fills(nn.Module):
    """The same, written into a tensor, with an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """The input plus noise."""
        noise = torch.empty_like(x)
        noise.exponential_()
        return x + noise


class Describes(nn.Module):
    """What describes the distribution, without a draw from it."""

    def forward(self, x: Tensor) -> Tensor:
        """Mean and scale."""
        return torch.cat([x, x.exp()], dim=1)


class Drops(nn.Module):
    """Dropout that does not know that training is over."""

    def forward(self, x: Tensor) -> Tensor:
        """Half of the input."""
        return functional.dropout(x, 0.5)


class DropsInTraining(nn.Module):
    """Dropout that knows."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return functional.dropout(x, 0.5, training=self.training)


class NormalisesBatch(nn.Module):
    """Batch normalisation by the batch's own statistics, with which an image's numbers depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("var", torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        """The input, normalised."""
        return functional.batch_norm(x, self.mean, self.var, training=True)


class NormalisesByStatistics(NormalisesBatch):
    """Batch normalisation by what was seen in training."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, normalised."""
        return functional.batch_norm(x, self.mean, self.var, training=self.training)


class Forgets(nn.Module):
    """Batch normalisation without running statistics."""

    def __init__(self, remember: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12, track_running_stats=remember)

    def forward(self, x: Tensor) -> Tensor:
        """The input, normalised."""
        h = x * 2
        return self.norm(h)


class Remembers(Forgets):
    """Batch normalisation with them."""

    def __init__(self) -> None:
        super().__init__(remember=True)


class Views(nn.Module):
    """The example's batch size, written down."""

    def forward(self, x: Tensor) -> Tensor:
        """The input in two rows."""
        h = x.view(-1, 3, 4) + 1
        return h.view(2, -1)


class Flattens(nn.Module):
    """The same for any batch."""

    def forward(self, x: Tensor) -> Tensor:
        """A row each."""
        h = x.view(-1, 3, 4) + 1
        return h.flatten(1)


class Counts(nn.Module):
    """The batch size taken with len."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        batch = len(x)
        h = x + 1
        return h.view(batch, 3, -1).flatten(1)


class Rounds(nn.Module):
    """The batch size made an int."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        batch = int(x.shape[0])
        h = x + 1
        return h.view(batch, 3, -1).flatten(1)


class Shapes(nn.Module):
    """The batch size as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        batch = x.shape[0]
        h = x + 1
        return h.view(batch, 3, -1).flatten(1)


class Lists(nn.Module):
    """A list of the images' results."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image doubled."""
        rows = [row * 2 for row in x]
        return torch.stack(rows)


class Adds(nn.Module):
    """A parameter that has a row for each image of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.ones(2, 12))

    def forward(self, x: Tensor) -> Tensor:
        """The input and the parameter."""
        h = x * 2
        return h + self.offset


class Pairs(nn.Module):
    """Images in pairs, so that their number must be even."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x.view(-1, 2, 12).flatten(0, 1)


class Bends(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's Bessel functions."""
        h = x + 1
        return torch.special.bessel_j0(h)


class Waves(nn.Module):
    """One that it has."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's cosine."""
        h = x + 1
        return torch.cos(h)


class Whole(nn.Module):
    """A network that loses the batch axis."""

    def forward(self, x: Tensor) -> Tensor:
        """One number for the whole batch."""
        total = (x * 2).sum()
        return total.reshape(1, 1)


class Each(nn.Module):
    """One that keeps it."""

    def forward(self, x: Tensor) -> Tensor:
        """A number for each image."""
        total = (x * 2).sum(dim=1)
        return total.reshape(-1, 1)


class Leads(nn.Module):
    """A network that returns the batch as another axis than the first."""

    def forward(self, x: Tensor) -> Tensor:
        """The images as columns."""
        return (x * 2).transpose(0, 1)


class Leaks(nn.Module):
    """A way out of torch."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, doubled by NumPy."""
        return torch.from_numpy(np.multiply(x.numpy(), 2))


class Centres(nn.Module):
    """Images compared with the mean of their batch."""

    def forward(self, x: Tensor) -> Tensor:
        """The difference."""
        mean = x.mean(dim=0)
        return x - mean


class Weighs(nn.Module):
    """A softmax over the wrong axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel's weight among those of the batch."""
        h = x * 2
        return h.softmax(dim=0)


class WeighsEach(nn.Module):
    """A softmax over the right one."""

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel's weight among those of its image."""
        h = x * 2
        return h.softmax(dim=1)


class Distances(nn.Module):
    """A library's function that asks how many rows there are, and that ONNX has not."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.ones(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        """How far each image is from each centre."""
        h = x * 2
        return torch.cdist(h, self.centres)


class Crowds(nn.Module):
    """A network that computes otherwise for many images."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice each image, or thrice."""
        h = x * 2
        if h.shape[0] > 63:
            h = x * 3
        return h


class Asks(nn.Module):
    """Code that copies many rows, as diffusers has it, and computes the same for any number of them."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice each image, turned."""
        h = x.unflatten(1, (3, 4)).transpose(1, 2)
        if h.shape[0] >= 64:
            h = h.contiguous()
        if h.numel() * 2 > 2**31:
            h = h.clone()
        return (h * 2).flatten(1)


class DistancesWritten(Distances):
    """What it computes."""

    def forward(self, x: Tensor) -> Tensor:
        """How far each image is from each centre."""
        h = x * 2
        return (h[:, None] - self.centres).square().sum(-1).sqrt()


class Saves(nn.Module):
    """Products in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """A layer under autocast."""
        with torch.autocast("cpu", torch.bfloat16):
            h = self.layer(x)
        return h.float()


class Unpads(nn.Module):
    """A layer that PyTorch computes and onnxruntime does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(1, 1, 2, padding=1, dilation=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The image, one row and column larger."""
        return self.layer(x.unflatten(1, (1, 3, 4))).flatten(1)


OTHER = "write it so that it does the same for any number of observations"
DATA = "data-dependent: the way depends on a tensor's values"
FIXED = "fixes the batch size"
MIXED = "an observation's numbers depend on the others of its batch"
REFUSED = [
    (Branches, "if positive.all():", DATA, WHERE, Chooses),
    (Halves, "while x.abs().max() > 1:", DATA, WHERE, HalvesOnce),
    (Checks, 'assert x.min() >= 0, "negative pixels"', DATA, WHERE, Leaves),
    (Samples, "return x + sigma * torch.randn_like(sigma)", "randn_like is random", NOISE, Describes),
    (Draws, "return Normal(x, x.exp(), validate_args=False).rsample()", "normal is random", NOISE, Describes),
    (Fills, "noise.exponential_()", "exponential is random", NOISE, Describes),
    (Drops, "return functional.dropout(x, 0.5)", "dropout as in training", TRAINING, DropsInTraining),
    (
        NormalisesBatch, "return functional.batch_norm(x, self.mean, self.var, training=True)",
        "batch_norm as in training", STATISTICS, NormalisesByStatistics,
    ),
    (Forgets, "return self.norm(h)", "batch_norm as in training", STATISTICS, Remembers),
    (Views, "return h.view(2, -1)", FIXED, SIZES, Flattens),
    (Counts, "batch = len(x)", FIXED, SIZES, Shapes),
    (Rounds, "batch = int(x.shape[0])", FIXED, SIZES, Shapes),
    (Lists, "rows = [row * 2 for row in x]", FIXED, SIZES, Leaves),
    (Adds, "return h + self.offset", FIXED, SIZES, Leaves),
    (Pairs, "return x.view(-1, 2, 12).flatten(0, 1)", "works for ((12*batch) % 24) == 0 only", SIZES, Leaves),
    (Crowds, "if h.shape[0] > 63:", "works for 2 <= batch and batch <= 63 only", OTHER, Asks),
    (
        Distances, "return torch.cdist(h, self.centres)", "ONNX has no operator for cdist_forward",
        OPERATORS, DistancesWritten,
    ),
    (Bends, "return torch.special.bessel_j0(h)", "ONNX has no operator for bessel_j0", OPERATORS, Waves),
    (Whole, "total = (x * 2).sum()", "an output of shape [1, 1]", AXIS, Each),
    (Centres, "mean = x.mean(dim=0)", MIXED, EACH, Leaves),
    (Weighs, "return h.softmax(dim=0)", MIXED, EACH, WeighsEach),
    (Leads, "return (x * 2).transpose(0, 1)", "an output of shape [12, batch]", AXIS, Leaves),
    (
        Leaks, "return torch.from_numpy(np.multiply(x.numpy(), 2))",
        ".numpy() is not supported for tensor subclasses.", TENSORS, Leaves,
    ),
]  # fmt: skip


def export(module: nn.Module) -> None:
    """To the oldest opset; raises BundleError. The graph gives the module's numbers at other batch sizes."""
    model = onnx_graph.to_onnx(module, torch.zeros(2, 12), "x", ["y"], 17)
    for size in (5, 70):
        x = torch.rand(size, 12, generator=torch.Generator().manual_seed(0))
        (got,) = Session(model.SerializeToString(), "module").run(["y"], x.numpy())
        with torch.no_grad():
            np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-5, atol=1e-5)


def line_of(module: type[nn.Module], text: str) -> int:
    """The number of the one line of a class that has this text."""
    lines, first = inspect.getsourcelines(module)
    (number,) = (first + i for i, line in enumerate(lines) if line.strip() == text)
    return number


@pytest.mark.parametrize(("module", "text", "reason", "advice"), [case[:4] for case in REFUSED])
def test_refusal_names_the_line_and_what_to_write(
    module: type[nn.Module], text: str, reason: str, advice: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line has the file, the line's number and text, the reason and the advice; torch's own talk is not heard."""
    with pytest.raises(BundleError) as caught:
        export(module())
    line = f"{Path(__file__).name}:{line_of(module, text)} `{text}`"
    assert str(caught.value) == f"network cannot be exported: {line} ({reason}); {advice}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("better", sorted({case[-1] for case in REFUSED}, key=lambda module: module.__name__))
def test_what_the_advice_leads_to_is_exported(better: type[nn.Module]) -> None:
    """The network written as advised becomes a graph that gives its numbers."""
    export(better().eval())


def test_line_inside_of_torchs_containers_is_found() -> None:
    """Where torch calls the network's own layer, the line is that layer's, not torch's."""
    with pytest.raises(BundleError, match=f"{Path(__file__).name}:{line_of(Views, 'return h.view(2, -1)')} "):
        export(nn.Sequential(nn.Linear(12, 12), nn.Sequential(Views())))
    with pytest.raises(BundleError, match=f"{Path(__file__).name}:{line_of(Samples, REFUSED[3][1])} "):
        export(nn.Sequential(nn.Linear(12, 12), nn.Sequential(Samples())))


def test_a_compiled_network_is_told_to_leave_that_out() -> None:
    """No line is known: inputs and outputs are named."""
    with pytest.raises(BundleError) as caught:
        export(torch.compile(Leaves()))
    line = "network cannot be exported: x to y (Leaves as torch.compile made it); leave torch.compile out"
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("module", "text", "reason", "advice"),
    [
        (Saves, "h = self.layer(x)", "NOT_IMPLEMENTED", "autocast"),
        (
            Unpads,
            "return self.layer(x.unflatten(1, (1, 3, 4))).flatten(1)",
            "output_padding (1) may be too large",
            "layer",
        ),
    ],
)
def test_what_onnxruntime_does_not_run_is_told_in_its_words(
    module: type[nn.Module], text: str, reason: str, advice: str
) -> None:
    """Its own reason, the line of the layer, and what to change."""
    with pytest.raises(BundleError) as caught:
        export(module())
    assert f"{Path(__file__).name}:{line_of(module, text)} `{text}`" in caught.value.which
    assert reason in caught.value.which
    assert advice in caught.value.todo


def test_noise_that_is_not_used_does_no_harm() -> None:
    """A draw that no output depends on, as in an encoder that returns mu and logsigma after all, is left out."""

    class Unused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            _ = x + torch.randn_like(x)
            return x * 2

    export(Unused())


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], ModuleType]]:
    """`load(file, text)`: the module of a new file with this text, imported until the test ends."""
    before = set(sys.modules)

    def imported(file: Path, text: str) -> ModuleType:
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"import torch\nfrom torch import nn\n{text}")
        monkeypatch.syspath_prepend(file.parent)
        return importlib.import_module(file.stem)

    yield imported
    for name in {"layers_of_others", "own_network"} - before:
        sys.modules.pop(name, None)


LIBRARY = "class Layer(nn.Module):\n    def forward(self, x):\n        return x + torch.randn_like(x)\n"
OWN = """
class Network(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
    def forward(self, x):
        h = x * 2
        return self.layer(h)
"""


def test_line_is_a_persons_own_not_an_installed_packages(
    load: Callable[[Path, str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an installed package's layer is at fault, the line is the person's that uses it, if there is one."""
    monkeypatch.setattr(code_lines, "_LIBRARIES", (*code_lines._LIBRARIES, f"{tmp_path}/installed/"))
    layer = load(tmp_path / "installed" / "layers_of_others.py", LIBRARY).Layer()
    network = load(tmp_path / "own_network.py", OWN).Network(layer)
    with pytest.raises(BundleError, match=r": own_network\.py:10 `return self\.layer\(h\)` \(randn_like is random\);"):
        export(network)
    with pytest.raises(BundleError, match=r": layers_of_others\.py:5 `return x \+ torch\.randn_like\(x\)` \("):
        export(layer)
