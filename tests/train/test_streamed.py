"""Training on data that are never held as a whole: a Dataset, or batches that can be iterated over again."""

import weakref
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vae_train
from support.runs import interrupted
from vae_runtime.errors import ArgumentError, InputError
from vae_train import results, streamed
from vae_train.datasets import Moments
from vae_train.settings import Settings

RNG = np.random.default_rng(0)
IMAGES = (RNG.random((400, 1, 8, 8)) * np.linspace(0, 255, 8)).astype(np.uint8)
ROWS = RNG.normal([5.0, -300.0, 0.0], [1.0, 20.0, 0.1], (500, 3))
SMALL: Settings = {"hidden": 8, "latent_dim": 2, "epochs": 2, "batch_size": 64}
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::vae_train.TrainingWarning"),
]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take seconds, and are not looked at here."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)


class Counted(np.ndarray[Any, Any]):
    """An array that can be watched."""


class Watched(Dataset[Any]):
    """Images that are made when they are asked for, and a count of those that are still alive."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most, self.asked = count, 0, 0, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Counted, int]:
        item = np.random.default_rng(index).integers(0, 256, (1, 8, 8), np.uint8).view(Counted)
        self.alive += 1
        self.most = max(self.most, self.alive)
        self.asked.append(index)
        weakref.finalize(item, self._gone)
        return item, index % 3

    def _gone(self) -> None:
        self.alive -= 1


class Numbered:
    """Batches of numbered observations, in order: what has gone through can be told."""

    def __init__(self, count: int, size: int) -> None:
        self.x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
        self.size = size

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.x, range(self.size, len(self.x), self.size)))


def tensors(x: np.ndarray) -> "TensorDataset":
    """A Dataset of these observations."""
    return TensorDataset(torch.from_numpy(x))


def weights(run: vae_train.Run) -> torch.Tensor:
    """All of them in a row."""
    return torch.cat([value.flatten().double() for value in run.vae.state_dict().values()])


def test_a_dataset_trains_as_the_array_of_its_items() -> None:
    """The same order, draws and steps: the same weights to the last bit, and the same figures."""
    train, test = IMAGES[:300], IMAGES[300:]
    in_memory = vae_train.fit(train, test, **SMALL)
    read = vae_train.fit(tensors(train), tensors(test), **SMALL)
    assert torch.equal(weights(read), weights(in_memory))
    assert read.evaluation["figures"] == in_memory.evaluation["figures"]
    assert read.config.data.dataset == "TensorDataset"


def test_rows_are_scaled_in_one_pass() -> None:
    """Means and spreads of what is trained on, as NumPy has them for the whole; a constant column is left out."""
    rows = np.insert(ROWS, 1, 7.0, axis=1)
    with pytest.warns(vae_train.TrainingNote, match="constant columns are left out: b"):
        run = vae_train.fit(tensors(rows[:400]), rows[400:], columns=("a", "b", "c", "d"), **SMALL)
    columns = run.settings.preprocessing["columns"]
    assert [column["name"] for column in columns] == ["a", "c", "d"]
    np.testing.assert_allclose([column["mean"] for column in columns], ROWS[:400].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([column["scale"] for column in columns], ROWS[:400].std(axis=0), rtol=1e-12)
    in_memory = vae_train.fit(rows[:400], rows[400:], **SMALL)
    torch.testing.assert_close(weights(run), weights(in_memory), rtol=1e-3, atol=1e-4)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    """However the rows are cut, and where the mean is a million times the spread."""
    x = RNG.normal([1e6, 0.0], [1.0, 3.0], (1000, 2))
    moments = Moments(2)
    for part in np.split(x, [1, 3, 700, 701]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(moments.spread, x.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize("count", [1000, 4000])
def test_what_is_held_does_not_grow_with_the_data(count: int) -> None:
    """Of a Dataset four times as long no more items are alive at once; each is trained on once in an epoch."""
    watched = Watched(count)
    run = vae_train.fit(watched, **SMALL)
    assert watched.most <= streamed._AT_A_TIME
    assert run.data is not None and not isinstance(run.data.train, torch.Tensor)
    tested = count // 10
    assert len(run.data.test) == tested and len(run.data.train) == count - tested
    assert run.data.names == ["0", "1", "2"]
    epoch = watched.asked[-(count - tested) :]
    assert len(set(epoch)) == count - tested


def test_what_is_tested_on_follows_from_the_seed() -> None:
    """The same items for the same seed, others for another; they are not trained on."""
    kept = []
    for seed in (0, 0, 1):
        watched = Watched(300)
        run = vae_train.fit(watched, seed=seed, **SMALL)
        trained = set(watched.asked[-270:])
        kept.append(sorted(set(range(300)) - trained))
        assert len(kept[-1]) == 30
        assert run.settings.preprocessing["split"] == f"30 of 300, by seed {seed}"
    assert kept[0] == kept[1] != kept[2]


def test_batches_are_mixed_and_all_seen_once() -> None:
    """In an order that the seed and the epoch say; a batch is as large as the training's, whatever came."""
    source = Numbered(1000, 37)
    batches = streamed.Batches(source, 1000, torch.zeros(1, 2), lambda items: items)
    found = [[batch[:, 0].tolist() for batch in batches.mixed(64, seed)] for seed in ((0, 1), (0, 1), (0, 2))]
    for order in found:
        assert [len(batch) for batch in order] == [64] * 15 + [40]
        assert sorted(chain(*order)) == list(range(1000))
    assert found[0] == found[1] != found[2]
    assert np.corrcoef(list(chain(*found[0])), range(1000))[0, 1] < 0.2


def test_batches_are_mixed_within_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more than are held, all still come, once, in whole batches."""
    monkeypatch.setattr(streamed, "_MIXED", 100)
    batches = streamed.Batches(Numbered(1000, 37), 1000, torch.zeros(1, 2), lambda items: items)
    found = [batch[:, 0].tolist() for batch in batches.mixed(64, (0, 1))]
    assert [len(batch) for batch in found] == [64] * 15 + [40]
    assert sorted(chain(*found)) == list(range(1000))
    assert max(found[0]) < 200


def test_a_loader_trains_the_same_for_the_same_seed() -> None:
    """One that shuffles, too; another seed gives other weights."""
    runs = []
    for seed in (0, 0, 1):
        loader = DataLoader(tensors(ROWS[:400]), batch_size=50, shuffle=True)
        torch.manual_seed(RNG.integers(1000))
        runs.append(vae_train.fit(loader, ROWS[400:], seed=seed, **SMALL))
    assert runs[0].settings.preprocessing["split"] == "given"
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


class Changing(Numbered):
    """Batches that are fewer at the third pass: the first is looked at, the second read for the first epoch."""

    passes = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        return iter(list(super().__iter__())[: -1 if self.passes > 3 else None])


class OneByOne(IterableDataset[Any]):
    """Items in an order of their own."""

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.zeros(9, 3))


class Odd(Watched):
    """Items, of which one is larger."""

    def __getitem__(self, index: int) -> Any:
        return np.zeros((1, 8, 8 + (index == 77)), np.float32)


@pytest.mark.parametrize(
    ("train", "test", "error", "words"),
    [
        ((batch for batch in [ROWS]), ROWS, InputError, "an iterator, which is spent after one pass: generator; "),
        (OneByOne(), ROWS, InputError, "a Dataset of single items that come in order: OneByOne; "),
        (Numbered(500, 50), None, ArgumentError, "batches without test data: Numbered; "),
        (Changing(500, 50), np.eye(2)[[0, 1] * 9], InputError, "batches are others than before: 450 "),
        (Odd(300), None, InputError, r"items of different shapes: item 77, and \[1, 8, 8\] of item "),
        (tensors(IMAGES.astype(np.int64)), None, InputError, "images of type int64: TensorDataset; "),
        (tensors(ROWS * [1, 1, np.nan]), None, InputError, r"missing value \(NaN\): TensorDataset\[\d+\], column 2"),
        (tensors(IMAGES), IMAGES[:, :, :4], InputError, r"test observations of another shape: train \[1, 8, 8\], test"),
        (tensors(IMAGES), IMAGES / 255, InputError, "levels and floats to train and to test on: train "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_streamed_is_told(train: Any, test: Any, error: type[Exception], words: str) -> None:
    """What is wrong, with which, and what to do."""
    with pytest.raises(error, match=f"^{words}"):
        vae_train.fit(train, test, **SMALL)


def test_a_dataset_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within its second epoch, it ends with the weights of a training without a break."""
    data = tensors(IMAGES)
    whole = vae_train.fit(data, **SMALL)
    interrupted(monkeypatch, 8, data, out=tmp_path / "run", **SMALL)
    run = vae_train.resume(tmp_path / "run", data)
    assert torch.equal(weights(run), weights(whole))
    loaded = vae_train.load_run(run.path)
    assert run.data is not None
    assert loaded.evaluate(2, test=tensors(run.data.test.numpy())) == run.evaluate(2)  # and so are test data found


def test_batches_do_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their order is their own: a training on them cannot go on exactly, and does not pretend to."""
    source = Numbered(500, 50)
    interrupted(monkeypatch, 10, source, source.x[:50], out=tmp_path / "run", **SMALL)
    with pytest.raises(ArgumentError, match=r"^a training on batches cannot go on exactly where it was: "):
        vae_train.resume(tmp_path / "run", source, source.x[:50])
