"""What is measured after each epoch, and the signs of trouble in it, in words."""

from dataclasses import asdict, dataclass

from torch import Tensor

from vae_train import bounds
from vae_train.config import Config
from vae_train.state import Metrics, TrainingState, best

ACTIVE = 0.01  # variance of mu over the data, above which a latent dimension is active (Burda et al. 2016, section 5.2)
# Steps of a run. With so many, scikit-learn's digits have 81 percent (preset tutorial) and 59 percent (gated) of what
# 1,600 gain over the best constant image; with 100 steps 51 and 29 percent.
FEW_STEPS = 300
# Observations to train on. The test ELBO of tiles of brick, with --preset resnet-colour, flips and shifts, is 711 nats
# below that of the 10 that were trained on in 400 steps, and 40 below that of 270 in 540 steps.
FEW = 100
_JUMP = 10  # times the mean norm of an epoch's gradients; a calm training's largest is about twice the mean
_FALLS = ("over-fitting", "the ELBO falls")
_COLLAPSED = 0.1  # share of active dimensions below which most of the latent space is lost


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch: nats per observation, seconds, observations per second.

    Both ELBOs are those of the weights at its end, of one draw of z for each x with the KL in closed form: of the test
    observations, and of as many trained on. active_units: dimensions of z that tell them apart. gradient_norm: the
    mean of every tenth step's; skipped_steps had no finite ELBO. Steps are those since the metrics before.
    """

    epoch: int
    train_elbo: float
    train_reconstruction: float
    train_kl: float
    test_elbo: float
    test_reconstruction: float
    test_kl: float
    test_standard_error: float | None
    active_units: int
    gradient_norm: float
    largest_gradient_norm: float
    skipped_steps: int
    seconds: float
    observations_per_second: float


def measure(training: TrainingState, train: Tensor, test: Tensor) -> Metrics:
    """The metrics of the epoch that has just ended; train, test: levels as the likelihood sees them."""
    on_train, on_test = (bounds.measure(training.vae, levels) for levels in (train, test))
    total, steps, largest = training.norms.tolist()
    progress = training.progress
    before = progress.metrics[-1]["epoch"] if progress.metrics else 0
    epoch = Epoch(
        epoch=progress.epoch,
        train_elbo=on_train.terms.elbo.mean().item(),
        train_reconstruction=on_train.terms.reconstruction.mean().item(),
        train_kl=on_train.terms.kl.mean().item(),
        test_elbo=on_test.terms.elbo.mean().item(),
        test_reconstruction=on_test.terms.reconstruction.mean().item(),
        test_kl=on_test.terms.kl.mean().item(),
        test_standard_error=bounds.figure(on_test.terms.elbo, training.overlap)["standard_error"],
        active_units=int((on_test.mu.var(dim=0, correction=0) > ACTIVE).sum()),
        gradient_norm=total / max(1, steps),
        largest_gradient_norm=largest,
        skipped_steps=int(training.skipped),
        seconds=progress.seconds,
        observations_per_second=(progress.epoch - before) * training.num_observations / progress.seconds,
    )
    return {name: value for name, value in asdict(epoch).items() if value is not None}


def outcome(training: TrainingState) -> str:
    """How a patient training ended: which weights are kept, or what more would do.

    Nothing where more would do little: the test ELBO rose by less than its standard error in as many last steps as it
    is waited for.
    """
    past, patience = training.progress.metrics, training.config.optimiser.patience or 0
    top, last = best(past), past[-1]
    kept = f"epoch {top['epoch']:.0f}"
    if training.out_of_patience:
        return f"the test ELBO has not risen for {patience:,} steps, since {kept}: the weights are those of that epoch"
    if top is not last:
        return f"the weights are those of {kept}, with the highest test ELBO"
    before = [row for row in past if (last["epoch"] - row["epoch"]) * training.steps_per_epoch >= patience]
    if not before or last["test_elbo"] - best(before)["test_elbo"] <= last.get("test_standard_error", 0):
        return ""
    spent = f"{training.most_epochs * training.steps_per_epoch:,} steps are spent and the test ELBO is still rising"
    return f"{spent}: --epochs {2 * training.most_epochs} trains twice as long"


def few_steps(config: Config, observations: int) -> str:
    """A warning where a run on so many observations has too few steps to learn much; else nothing."""
    each = config.optimiser.steps_per_epoch(observations)
    if (steps := config.optimiser.most_epochs(observations) * each) >= FEW_STEPS:
        return ""
    return f"few steps: {steps} in the whole run; give more --epochs, {-(-FEW_STEPS // each)} at least"


def few_observations(noun: str, count: int) -> str:
    """A warning where so many observations to train on are too few to learn what they have in common; else nothing."""
    if count >= FEW:
        return ""
    return f"few {noun}s: {count} to train on, which are learned by heart; give {FEW} or more, better some hundreds"


def trouble(metrics: list[Metrics], latent_dim: int, few: bool = False, warned: bool = False) -> list[str]:
    """What the figures warn of, in words: posterior collapse, steps skipped so far, jumps, over-fitting, a fall.

    few: whether the run has few steps, in which a posterior has no time to open: no collapse is told. warned: whether
    something was said of the networks before their first step, which is then the likelier reason of a collapse.
    """
    last, found = metrics[-1], []
    if last["active_units"] <= _COLLAPSED * latent_dim and not few:
        active = f"{last['active_units']:.0f} of {latent_dim} latent dimensions are active"
        first = "mend first what was said of the networks before their first step; then " if warned else ""
        what = "so that the model sees little of what it is given, and draws much the same for all"
        found.append(f"posterior collapse: {active}, {what}; {first}a --warm-up, --free-bits or a lower --lr may help")
    if (skipped := sum(row["skipped_steps"] for row in metrics)) > 0:
        found.append(f"steps skipped: {skipped:.0f}, which were not finite; a lower --lr may help")
    if last["largest_gradient_norm"] > _JUMP * last["gradient_norm"]:
        norms = f"a norm of {last['largest_gradient_norm']:,.0f}, and {last['gradient_norm']:,.0f} on average"
        found.append(f"gradients jump: {norms}; a lower --lr may help")
    top = best(metrics)
    if top["test_elbo"] - last["test_elbo"] > last.get("test_standard_error", 0):
        fall = f"test ELBO {last['test_elbo']:.2f}, and {top['test_elbo']:.2f} at epoch {top['epoch']:.0f}"
        if last["train_elbo"] > top["train_elbo"]:
            gap = f"while the train ELBO rose to {last['train_elbo']:.2f}"
            found.append(f"over-fitting: {fall}, {gap}; that epoch's weights are kept as best.safetensors")
        else:
            found.append(f"the ELBO falls: {fall}; a lower --lr may help")
    return found


def news(
    metrics: list[Metrics],
    epochs: int | None,
    latent_dim: int,
    few: bool = False,
    warned: bool = False,
    patient: bool = False,
) -> list[str]:
    """What the last epoch's figures warn of and those before did not.

    epochs: the most there are, after the last of which all of it is told; None where the training has ended. Nothing
    while the learning rate still grows, in the first tenth of the training: trouble of that time often passes.
    patient: whether a fall of the test ELBO is waited out, and told only where the training ends with it.
    """
    epoch, found = metrics[-1]["epoch"], trouble(metrics, latent_dim, few, warned)
    if epochs is None or epoch == epochs:
        return found
    if epoch <= epochs / 10:
        return []
    told = len(metrics) > 1 and metrics[-2]["epoch"] > epochs / 10
    before = trouble(metrics[:-1], latent_dim, few, warned) if told else []
    known = {*map(_kind, before), *(_FALLS if patient else ())}
    return [line for line in found if _kind(line) not in known]


def told(
    metrics: list[Metrics],
    epochs: int,
    latent_dim: int,
    few: bool = False,
    warned: bool = False,
    patient: bool = False,
) -> list[str]:
    """What the last epoch's figures warn of, and what `news` said before that has passed since."""
    found = trouble(metrics, latent_dim, few, warned)
    known = set(map(_kind, found))
    for i in range(1, len(metrics)):
        for line in news(metrics[:i], epochs, latent_dim, few, warned, patient):
            if _kind(line) not in known:
                known.add(_kind(line))
                found.append(f"at epoch {metrics[i - 1]['epoch']:.0f}, passed since: {line}")
    return found


def _kind(line: str) -> str:
    return line.partition(":")[0]


def describe(row: Metrics) -> str:
    """An epoch for people, in the 80 columns of a terminal."""
    speed = row["observations_per_second"]
    return (
        f"epoch {row['epoch']:3.0f}  ELBO: train {row['train_elbo']:.2f}, test {row['test_elbo']:.2f} = "
        f"{row['test_reconstruction']:.2f} - {row['test_kl']:.2f} nats  {row['seconds']:.1f} s  "
        f"{format(speed, ',.0f' if speed >= 10 else '.2g')}/s"
    )
