"""Several processes train as one does: the same batches, pixels and noise, one voice, and no process left behind."""

import dataclasses
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
import torch.distributed
from torch.utils.data import TensorDataset

import vae_train
from vae_runtime.errors import EnvironmentUnfit
from vae_train import data, distributed, loop, metrics, train
from vae_train.config import PRESETS, Config, Place
from vae_train.listener import Listener
from vae_train.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "multi-node.md"
STOPPED = "training stopped, its state saved: run; go on with: vae-train --resume run --device cpu"
LAST = re.compile("vae-train: (error|interrupted|terminated): ")
PATIENCE = 600  # seconds, for the slowest and busiest machine

# 1,576 images in batches of 225: the last batch is one image, so that the second process has none
SMALL = ["--dataset", "digits", "--hidden", "16", "--latent-dim", "3", "--batch-size", "225", "--device", "cpu"]
TIMINGS = {"seconds", "observations_per_second"}

# Forks processes as torchrun starts them, but out of one that has imported everything, which saves seconds for each.
NURSERY = """
import importlib, json, os, resource, signal, sys, traceback
import numpy, safetensors.torch, sklearn.datasets, sklearn.manifold, torch, torch.distributed, torchvision
from matplotlib.figure import Figure
from vae_train import cli, results, train
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
for line in sys.stdin:
    pids = []
    for child in json.loads(line):
        pid = os.fork()
        if pid == 0:
            os.environ.update(child["environment"])
            os.chdir(child["folder"])
            for number, name in enumerate((os.devnull, child["out"], child["err"])):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
            if child["largest_file"]:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (child["largest_file"],) * 2)
            sys.argv = ["vae-train", *child["arguments"]]
            code = 0
            try:
                if child["function"]:
                    getattr(importlib.import_module(child["module"]), child["function"])()
                else:
                    cli.main()
            except SystemExit as left:
                code = left.code
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # a forked interpreter takes seconds to end in order
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""


@dataclass
class Ended:
    """What processes of one training left behind, the first's first."""

    codes: list[int]
    outs: list[str]
    errs: list[str]

    @property
    def errors(self) -> list[str]:
        """The error lines of all."""
        return [line for err in self.errs for line in err.splitlines() if LAST.match(line)]


class Nursery:
    """Starts the processes of a training, each in a folder of its own, as on machines that share no disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        command = [sys.executable, "-c", NURSERY, str(Path(__file__).parent)]
        environment = {**os.environ, "GOMP_SPINCOUNT": "2000"}
        self.parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.store: torch.distributed.TCPStore | None = None  # torchrun's part
        self.pids: list[int] = []

    def start(
        self,
        number: int,
        folders: list[Path],
        *arguments: object,
        environments: list[dict[str, str]] | None = None,
        more: list[list[str]] | None = None,
        function: str = "",
        largest_file: int = 0,
    ) -> list[int]:
        """Start them and give their ids. `environments` and `more` arguments are each one's own.

        They are `vae-train`, or a function of this file. `largest_file` limits the first's files, bytes.
        """
        assert not self.pids, "an earlier test left them"
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": str(number)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        common |= {"LOCAL_WORLD_SIZE": str(number)}
        self.started += 1
        children = []
        self.logs = []
        for rank in range(number):
            environment = {} if number == 1 else {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= environments[rank] if environments else {}
            folders[rank].mkdir(exist_ok=True)
            logs = [self.folder / f"{self.started}-{rank}.{kind}" for kind in ("out", "err")]
            self.logs.append(logs)
            children.append(
                {
                    "environment": environment,
                    "folder": str(folders[rank]),
                    "out": str(logs[0]),
                    "err": str(logs[1]),
                    "arguments": [*map(str, arguments), *(more[rank] if more else [])],
                    "module": Path(__file__).stem,
                    "function": function,
                    "largest_file": largest_file if rank == 0 else 0,
                }
            )
        assert self.parent.stdin is not None
        self.parent.stdin.write(json.dumps(children) + "\n")
        self.parent.stdin.flush()
        self.pids = self._answer()
        return list(self.pids)

    def end(self) -> Ended:
        """Wait for all of them."""
        codes = self._answer()
        self.pids = []
        outs, errs = ([path.read_text() for path in paths] for paths in zip(*self.logs, strict=True))
        return Ended(codes, outs, errs)

    def run(self, number: int, folders: list[Path], *arguments: object, **settings: Any) -> Ended:
        """Start them, and wait."""
        self.start(number, folders, *arguments, **settings)
        return self.end()

    def _answer(self) -> Any:
        assert self.parent.stdout is not None
        assert select.select([self.parent.stdout], [], [], PATIENCE)[0], "the processes hang"
        return json.loads(self.parent.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One for all tests; no process of its trainings is left at the end."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    left = psutil.Process(nursery.parent.pid).children(recursive=True)
    for process in left:
        process.kill()
    with nursery.parent:
        nursery.parent.kill()
    assert left == []


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Working folders, one for each process."""
    return [tmp_path / f"machine{rank}" for rank in range(3)]


def rows(run: Path) -> list[dict[str, float]]:
    """A run's metrics without its timings."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def furthest(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest relative difference between two trainings' metrics."""
    pairs = [(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x]
    return max(abs(x - y) / (abs(x) + 1e-3) for x, y in pairs)


def wait_for(ready: Callable[[], object]) -> None:
    """Until something is there; it must be, before PATIENCE ends."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


def checkpoints(run: Path) -> set[str]:
    """The names of a run's checkpoints."""
    return {path.name for path in (run / "checkpoints").glob("[0-9]*.safetensors")}


# Whole trainings


@pytest.mark.slow
def test_two_processes_train_as_one_does(nursery: Nursery, places: list[Path]) -> None:
    """Metrics and weights agree with one process's to rounding, whatever the threads; another seed's are far away.

    The first process alone prints and writes: the other's folder stays empty.
    """
    arguments = [*SMALL, "--epochs", 3, "--free-bits", 0.05, "--gradient", "total", "--out", "run"]
    ours = [places[0], places[1]]
    two = nursery.run(2, ours, *arguments, environments=[{"VAE_EDGE_THREADS": "2"}, {"VAE_EDGE_THREADS": "4"}])
    assert two.codes == [0, 0], two.errs
    alone = [places[2]]
    one = nursery.run(1, alone, *arguments, "--threads", 2)
    assert one.codes == [0], one.errs
    other = nursery.run(1, alone, *arguments[:-1], "other", "--seed", 1)
    assert other.codes == [0], other.errs

    runs = [places[0] / "run", places[2] / "run", places[2] / "other"]
    assert furthest(rows(runs[0]), rows(runs[1])) < 1e-5
    assert furthest(rows(runs[0]), rows(runs[2])) > 1e-2
    weights = [safetensors.torch.load_file(run / "model.safetensors") for run in runs]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-5)
    assert max((weights[0][name] - weights[2][name]).abs().max().item() for name in weights[0]) > 1e-2

    assert list(places[1].iterdir()) == []
    assert (two.outs[1], two.errs[1]) == ("", "")
    without_timings = [re.sub(r"[\d.]+ s +[\d,]+/s", "", out) for out in (two.outs[0], one.outs[0])]
    assert without_timings[0] == without_timings[1]
    assert "1 thread in each of 2 processes" in two.errs[0]
    assert {path.name for path in runs[0].iterdir()} == {path.name for path in runs[1].iterdir()}
    settings = [json.loads((run / "config.json").read_text()) for run in runs]
    provenance = [each.pop("provenance") for each in settings]
    assert [each["processes"] for each in provenance] == [2, 1, 1]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(nursery: Nursery, places: list[Path]) -> None:
    """Stopped with 1, 2 and 3 processes and resumed with 2, 3 and 1, a run ends as if nothing had happened.

    A signal to any one process stops all after their step, with its exit code, one line and one checkpoint. Only the
    first process reads the run folder: the others have none. It alone holds the lock.
    """
    arguments = [*SMALL, "--epochs", 30, "--seed", 3]
    run = places[0] / "run"
    seen: set[str] = set()
    stages = [(1, signal.SIGTERM, [0]), (2, signal.SIGINT, [0, 1]), (3, signal.SIGTERM, [2])]
    for processes, number, to in stages:
        words = ["--resume", "run", "--device", "cpu"] if processes > 1 else [*arguments, "--out", "run"]
        pids = nursery.start(processes, places[:processes], *words)
        wait_for(lambda seen=seen: checkpoints(run) - seen)
        holders = [any(Path(file.path) == run / "config.json" for file in psutil.Process(p).open_files()) for p in pids]
        assert holders == [rank == 0 for rank in range(processes)]
        for rank in to:
            os.kill(pids[rank], number)
        ended = nursery.end()
        assert ended.codes == [128 + number] * processes, ended.errs
        word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
        line = f"vae-train: {word}: {STOPPED}"
        assert ended.errors == [line]
        assert ended.errs[0].endswith(f"{line}\n")
        assert ended.outs[1:] == [""] * (processes - 1)
        assert ended.errs[1:] == [""] * (processes - 1)
        assert len(checkpoints(run)) == 2
        seen = checkpoints(run)
    assert [list(place.iterdir()) for place in places[1:]] == [[], []]

    last = nursery.run(1, places[:1], "--resume", "run", "--device", "cpu")
    assert last.codes == [0], last.errs
    whole = nursery.run(1, places[1:], *arguments, "--out", "whole")
    assert whole.codes == [0], whole.errs
    assert furthest(rows(run), rows(places[1] / "whole")) < 1e-3


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(nursery: Nursery, places: list[Path]) -> None:
    """Stopped and resumed, two processes end with the weights of two that were not, to the last bit."""
    arguments = [*SMALL, "--epochs", 8, "--preset", "gated"]
    ended = nursery.run(2, places, *arguments, "--out", "whole")
    assert ended.codes == [0, 0], ended.errs
    pids = nursery.start(2, places, *arguments, "--out", "run")
    wait_for(lambda: checkpoints(places[0] / "run"))
    os.kill(pids[0], signal.SIGTERM)
    assert nursery.end().codes == [143, 143]
    ended = nursery.run(2, places, "--resume", "run", "--device", "cpu")
    assert ended.codes == [0, 0], ended.errs
    whole, broken = (safetensors.torch.load_file(places[0] / run / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(weight, broken[name]) for name, weight in whole.items())


# Networks and objectives, without the files of a run

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "path gradient": ("tutorial", {}),
    "free bits": ("tutorial", {"free_bits": 0.3}),
    "free bits, total gradient, warm-up": (
        "tutorial",
        {"free_bits": 0.3, "gradient": "total", "warm_up": 1.5, "beta": 2.0},
    ),
    "importance-weighted, path gradient": ("tutorial", {"samples": 5}),
    "importance-weighted, total gradient": ("tutorial", {"samples": 5, "gradient": "total"}),
    "learned sigma": ("tutorial", {"likelihood": "gaussian"}),
    "learned sigma, importance-weighted": (
        "tutorial",
        {"likelihood": "gaussian", "gradient": "total", "samples": 3},
    ),
    "grey levels": ("tutorial", {"likelihood": "discretised-logistic"}),
    "learned prior": ("tutorial", {"prior": "flow"}),
    "learned prior, total gradient": ("tutorial", {"prior": "flow", "gradient": "total"}),
    "gated": ("gated", {}),
    "resnet": ("resnet", {"hidden": (4, 8), "dense": 16, "precision": "float32"}),
    "resnet, bfloat16": ("resnet", {"hidden": (4, 8), "dense": 16, "precision": "bfloat16"}),
    "bfloat16": ("tutorial", {"precision": "bfloat16"}),
}
COMMON = {"dataset": "digits", "hidden": (16,), "latent_dim": 3, "epochs": 3, "batch_size": 35, "lr": 5e-3}


def feature(name: str, seed: int = 0) -> Config:
    """The settings of a small training."""
    preset, changes = FEATURES[name]
    return PRESETS[preset].replace(**{**COMMON, "seed": seed, **changes})


def fit(config: Config, where: torch.device) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train on 141 images, so that the last batch is a single one: metrics and weights."""
    whole = data.load(config, Path())
    images = dataclasses.replace(whole, train=whole.train[:141])
    training = train._prepare(config, images, where, None)

    def end_epoch() -> None:
        binary = training.vae.likelihood.binary
        levels = images.observed_train(binary), images.observed_test(binary)
        training.end_epoch(metrics.measure(training, *levels))

    loop.fit(training, images.train, end_epoch, quiet=True)
    found = [{k: v for k, v in row.items() if k not in TIMINGS} for row in training.progress.metrics]
    return found, {name: weight.detach().clone() for name, weight in training.vae.state_dict().items()}


def fit_features() -> None:
    """Run by each process: train with every feature, and leave what came out."""
    with train.machine(Place(Path(), False, "cpu", threads=1)) as where:
        found = {name: fit(feature(name), where) for name in FEATURES}
        torch.save(found, f"features-{distributed.rank()}.pt")


@pytest.fixture(scope="module")
def fitted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes got with every feature."""
    folder = tmp_path_factory.mktemp("features")
    ended = nursery.run(3, [folder] * 3, function="fit_features")
    assert ended.codes == [0, 0, 0], ended.errs
    assert ended.errs == ["", "", ""]  # nor a warning of PyTorch's
    return [torch.load(folder / f"features-{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.usefixtures("one_thread")
def test_every_network_and_objective_is_the_same_in_parts(fitted: list[dict[str, Any]], name: str) -> None:
    """Three processes have equal weights to the last bit, and one process's to rounding; another seed has others.

    In the last batch two of them have no image.
    """
    curves, weights = fitted[0][name]
    for _, others in (process[name] for process in fitted[1:]):
        assert all(torch.equal(weight, others[key]) for key, weight in weights.items())
    alone, expected = fit(feature(name), torch.device("cpu"))
    far, _ = fit(feature(name, seed=1), torch.device("cpu"))
    if "bfloat16" in name:  # sums of fewer products are rounded to 8 bits
        assert furthest(curves, alone) < min(0.05, 0.1 * furthest(far, alone))
    else:
        assert furthest(curves, alone) < 1e-5 < 1e-2 < furthest(far, alone)
        for key, weight in weights.items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-5)


def train_on_unlike_processors() -> None:
    """Run by each process: begin a training where only the first has instructions for bfloat16, and leave its word."""
    rank = os.environ["RANK"]
    torch.cpu.get_capabilities = lambda: {"avx512_bf16": rank == "0"}  # type: ignore[assignment]
    train._run = lambda training, *rest: Path(f"precision-{rank}").write_text(training.config.optimiser.precision)  # type: ignore
    config = PRESETS["resnet"].replace(dataset="digits", hidden=(4,), dense=8)
    listener = Listener(say=lambda text: print(text, file=sys.stderr))
    train.train(config, Path("run"), Place(Path(), False, "cpu", threads=1), "vae-train", listener=listener)


def test_products_are_the_first_processs(nursery: Nursery, tmp_path: Path) -> None:
    """Where `auto` is another precision on each machine, all compute in the first's, and it alone says so."""
    ended = nursery.run(2, [tmp_path] * 2, function="train_on_unlike_processors")
    assert ended.codes == [0, 0], ended.errs
    assert [(tmp_path / f"precision-{rank}").read_text() for rank in range(2)] == ["bfloat16", "bfloat16"]
    assert "products in bfloat16: the processor has avx512_bf16" in ended.errs[0]
    assert "products" not in ended.errs[1]


def fit_arrays() -> None:
    """Run by each process: training from Python on an array and a Dataset of it, and the sums of the weights then."""
    warnings.simplefilter("ignore")
    train.results.report.draw = lambda *given: None
    levels = np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    settings: Settings = {"hidden": 8, "latent_dim": 2, "epochs": 2}
    for name, given in (("held", levels), ("streamed", TensorDataset(torch.from_numpy(levels)))):
        run = vae_train.fit(given, levels[:50], out=name, device="cpu", threads=1, progress=False, **settings)
        print(sum(weight.double().sum().item() for weight in run.vae.state_dict().values()))


def test_arrays_are_trained_on_by_several_processes(nursery: Nursery, tmp_path: Path) -> None:
    """`vae_train.fit` gives each process the same run, whose weights are those of one process but for rounding."""
    two, one = nursery.run(2, [tmp_path] * 2, function="fit_arrays"), tmp_path / "one"
    assert two.codes == [0, 0], two.errs
    alone = nursery.run(1, [one], function="fit_arrays")
    sums = [[float(line) for line in out.split()] for out in (*two.outs, *alone.outs)]
    assert sums[0] == sums[1] == pytest.approx(sums[2], abs=1e-5)
    assert sums[0][0] == sums[0][1]
    assert two.errs == ["", ""]


def test_fit_is_refused_where_a_machine_does_not_have_the_run(nursery: Nursery, places: list[Path]) -> None:
    """Before the first step, in the words of that machine; the other ends with its exit code, and leaves no folder."""
    ended = nursery.run(2, places, function="fit_arrays")
    assert ended.codes[0] == EnvironmentUnfit.exit_code
    assert "EnvironmentUnfit: the first process's run folder is not on this machine: held; give an out" in ended.errs[1]
    assert not (places[0] / "held").exists()


def ask_each_other() -> None:
    """Run by each process: what `distributed` gives it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 4, generator=generator)
    made = []

    def make() -> dict[str, list[int]]:
        made.append(distributed.rank())
        return {"made": [1, 2]}

    with distributed.joined(torch.device("cpu")):
        rank = distributed.rank()
        answers = {
            "size": distributed.size(),
            "parts": [distributed.part(torch.arange(n)).tolist() for n in range(8)],
            "mean": distributed.mean(distributed.part(values)).tolist(),
            "mean of two": distributed.mean(distributed.part(values[:2])).tolist(),
            "agreed": [distributed.agreed(number) for number in (0, rank, 5 - rank)],
            "smallest": distributed.smallest(torch.tensor(2.0 + rank)).item(),
            "from first": distributed.from_first(make),
            "made": made,
        }
        Path(f"answers-{rank}.json").write_text(json.dumps(answers))


def test_processes_ask_each_other(nursery: Nursery, tmp_path: Path) -> None:
    """Parts are disjoint, in order and complete; means are the whole's; all hear the largest, smallest and first's."""
    ended = nursery.run(3, [tmp_path] * 3, function="ask_each_other")
    assert ended.codes == [0, 0, 0], ended.errs
    answers = [json.loads((tmp_path / f"answers-{rank}.json").read_text()) for rank in range(3)]
    assert [each["size"] for each in answers] == [3, 3, 3]
    for n in range(8):
        parts = [each["parts"][n] for each in answers]
        assert [row for part in parts for row in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    for name, n in (("mean", 7), ("mean of two", 2)):
        for each in answers:
            np.testing.assert_allclose(each[name], values[:n].mean(dim=0), rtol=1e-6)
    assert [each["agreed"] for each in answers] == [[0, 2, 5]] * 3
    assert [each["smallest"] for each in answers] == [2.0] * 3
    assert [each["from first"] for each in answers] == [{"made": [1, 2]}] * 3
    assert [each["made"] for each in answers] == [[0], [], []]


def test_one_process_alone_initialises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, and with one process of it, torch.distributed stays as it was, and all answers are its own."""
    values = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for size in (None, "1"):
        if size is None:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("WORLD_SIZE", size)
        with distributed.joined(torch.device("cpu")):
            assert not torch.distributed.is_initialized()
            assert (distributed.size(), distributed.rank(), distributed.agreed(3)) == (1, 0, 3)
            assert torch.equal(distributed.part(values), values)
            assert torch.equal(distributed.mean(values), values.mean(dim=0))
            assert distributed.from_first(lambda: "made") == "made"


def test_processes_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE without the address of the others is an unfit environment, and says to use torchrun."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(EnvironmentUnfit, match="start all of them with torchrun"),
        distributed.joined(torch.device("cpu")),
    ):
        pass
    assert not torch.distributed.is_initialized()


# Failures


def refused(ended: Ended, code: int, says: str) -> None:
    """All processes left with this code, and one of them said why, in one line."""
    assert ended.codes == [code] * len(ended.codes), ended.errs
    assert [bool(re.search(says, line)) for line in ended.errors] == [True], ended.errs
    assert not any("Traceback" in err for err in ended.errs)


UNUSED = """
from torch import nn
from vae_train import mlp
def make(image_shape, latent_dim, out):
    encoder = mlp.Encoder(image_shape, (4,), latent_dim, "relu")
    encoder.unused = nn.Linear(2, 2)
    return encoder, mlp.Decoder(image_shape, (4,), latent_dim, "relu", out)
"""
WRONG = ["folder exists", "folder cannot be made", "diverged", "settings", "disk full", "unused weights"]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_training_that_fails_ends_in_one_line(nursery: Nursery, places: list[Path], wrong: str) -> None:
    """Whatever fails, both processes leave with its exit code, one line says why, and nothing is left behind."""
    for place in places[:2]:
        place.mkdir()
    (places[0] / "file").touch()
    arguments = [*SMALL, "--epochs", 2, "--out", "run"]
    settings: dict[str, Any] = {}
    if wrong == "folder exists":
        (places[0] / "run").mkdir()
        (places[0] / "run" / "mine").touch()
        code, says = 2, "run folder exists: run;"
    elif wrong == "folder cannot be made":
        arguments[-1] = "file/run"
        code, says = 2, "cannot write: file/run"
    elif wrong == "diverged":
        arguments += ["--lr", "1e30"]
        code, says = 2, "training diverged"
    elif wrong == "settings":
        settings = {"more": [["--seed", "1"], ["--seed", "2"]]}
        code, says = 2, "settings are not the first process's"
    elif wrong == "unused weights":
        for place in places[:2]:
            (place / "unused.py").write_text(UNUSED)
        arguments += ["--model", "unused:make"]
        code, says = 2, "weights without a gradient: unused:make; leave them out, or train with one process"
    else:
        settings = {"largest_file": 2000}
        code, says = 5, "disk full"
    before = [sorted(place.rglob("*")) for place in places[:2]]
    ended = nursery.run(2, places, *arguments, **settings)
    refused(ended, code, says)
    assert [sorted(place.rglob("*")) for place in places[:2]] == before


@pytest.mark.parametrize("wrong", ["first has none", "second has none", "second has others"])
def test_data_must_be_the_same_everywhere(
    nursery: Nursery, digits_root: Path, tmp_path: Path, places: list[Path], wrong: str
) -> None:
    """A process whose images are missing, or are not the first's, stops all with exit code 4 and one line."""
    none = tmp_path / "none"
    other = Path(shutil.copytree(digits_root, tmp_path / "other"))
    images = other / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    roots = {
        "first has none": [none, digits_root],
        "second has none": [digits_root, none],
        "second has others": [digits_root, other],
    }[wrong]
    arguments = ["--hidden", 16, "--latent-dim", 3, "--epochs", 1, "--device", "cpu", "--no-download", "--out", "run"]
    ended = nursery.run(2, places, *arguments, more=[["--data-root", str(root)] for root in roots])
    says = {"second has others": f"images are not the first process's: {other}; "}
    refused(ended, 4, says.get(wrong, f"data not found: {none}"))
    assert [list(place.iterdir()) for place in places[:2]] == [[], []]


@pytest.fixture(scope="module")
def unfinished(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes, of which one was killed."""
    folder = tmp_path_factory.mktemp("unfinished")
    places = [folder / "first", folder / "second"]
    pids = nursery.start(2, places, *SMALL, "--epochs", 1000, "--out", "run")
    wait_for(lambda: len(checkpoints(places[0] / "run")) == 2)
    os.kill(pids[1], signal.SIGKILL)
    ended = nursery.end()
    assert ended.codes == [6, -signal.SIGKILL], ended.errs
    assert len(ended.errors) == 1
    assert "another process of the training is lost" in ended.errors[0]
    assert "Traceback" not in ended.errs[0]
    return places[0] / "run"


@pytest.mark.parametrize("wrong", ["all damaged", "none", "locked"])
def test_what_cannot_be_resumed_is_refused(nursery: Nursery, unfinished: Path, places: list[Path], wrong: str) -> None:
    """A killed process ends the others in exit code 6 and one line; `--resume` then needs a checkpoint and the lock."""
    import fcntl

    places[0].mkdir()
    run = Path(shutil.copytree(unfinished, places[0] / "run"))
    for name in checkpoints(run):
        path = run / "checkpoints" / name
        if wrong == "none":
            path.unlink()
        elif wrong == "all damaged":
            path.write_bytes(path.read_bytes()[:-1])
    code, says = {
        "all damaged": (3, "no checkpoint to resume from"),
        "none": (3, "no checkpoint to resume from"),
        "locked": (2, "another training is at work in the run"),
    }[wrong]
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    with (run / "config.json").open("rb") as file:
        if wrong == "locked":
            fcntl.flock(file, fcntl.LOCK_EX)
        ended = nursery.run(2, places, "--resume", "run", "--device", "cpu")
    refused(ended, code, says)
    warned = [line for line in ended.errs[0].splitlines() if "checkpoint damaged" in line]
    assert len(warned) == (2 if wrong == "all damaged" else 0)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_training_ends_all(nursery: Nursery, places: list[Path], number: int) -> None:
    """While the first process still reads its images, a signal to all makes them leave with its code and one line.

    Where the second has not reached the first yet, as on a busy machine, it says the same for itself.
    """
    places[0].mkdir()
    pipe = places[0] / "images.npy"
    os.mkfifo(pipe)  # on which the first process waits
    arguments = ["--dataset", "images.npy", "--preset", "tutorial", "--device", "cpu", "--out", "run"]
    pids = nursery.start(2, places, *arguments)
    writers: list[int] = []

    def read() -> bool:
        try:
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    wait_for(read)
    for pid in pids:
        os.kill(pid, number)
    ended = nursery.end()
    os.close(writers[0])
    assert ended.codes == [128 + number] * 2, ended.errs
    (line,) = set(ended.errors)
    assert re.search("terminated|interrupted", line)
    assert not any("Traceback" in err for err in ended.errs)
    assert [list(place.iterdir()) for place in places[:2]] == [[pipe], []]


# torchrun itself


def torchrun(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    """Start it, with two processes on this machine."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def own_lines(err: str) -> list[str]:
    """What `vae-train` says, without torchrun's own words."""
    return [line for line in err.splitlines() if line.startswith("vae-train: ")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_ends_with_torchrun(tmp_path: Path, number: int) -> None:
    """Terminated or killed, torchrun leaves one line of ours, a saved state, and no process."""
    process = torchrun("-m", "vae_train", *SMALL, "--epochs", 1000, "--out", "run", folder=tmp_path)
    wait_for(lambda: checkpoints(tmp_path / "run"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    line = (
        "vae-train: terminated: training stopped, its state saved: run; go on with: vae-train --resume run --device cpu"
    )
    assert [said for said in own_lines(err) if LAST.match(said)] == [line]
    assert "vae_train/" not in err  # no traceback of ours
    psutil.wait_procs(children, timeout=PATIENCE)
    assert not any(child.is_running() for child in children)
    assert len(checkpoints(tmp_path / "run")) == 2


@pytest.mark.slow
def test_torchrun_repeats_the_reason(tmp_path: Path) -> None:
    """An error is one line of ours, which the summary that torchrun ends with quotes as the first failure's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    process = torchrun("-m", "vae_train", *SMALL, "--out", "run", folder=tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    line = "vae-train: error: run folder exists: run; choose another with --out, or remove it"
    assert process.returncode == 1
    assert own_lines(err) == [line]
    assert "vae_train/" not in err
    _, _, root = err.partition("Root Cause")
    assert re.search(r"rank +: 0 ", root)
    assert re.search(r"exitcode +: 2 ", root)
    assert line in root


@pytest.mark.slow
def test_the_page_on_several_machines_is_true(tmp_path: Path) -> None:
    """The shown command trains on two machines, here two folders; that whose name sorts first writes the run.

    The other needs no run folder to go on with it either.
    """
    (shown,) = re.findall(r"^torchrun .*--nnodes=2 .*$", PAGE.read_text(), re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shown = shown.replace("first.example:29400", f"127.0.0.1:{free.getsockname()[1]}")
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(shown)[1:], "--device", "cpu"]
    started = []
    for name in ("127.0.0.3", "127.0.0.2"):
        folder = tmp_path / name
        folder.mkdir()
        local = [*command[:3], f"--local-addr={name}", *command[3:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(local, cwd=folder, **pipes))
    said = [process.communicate(timeout=PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert (said[0][0], own_lines(said[0][1])) == ("", [])
    assert list((tmp_path / "127.0.0.3").iterdir()) == []
    run = tmp_path / "127.0.0.2" / "runs" / "both"
    assert json.loads((run / "config.json").read_text())["provenance"]["processes"] == 2
