"""The ways to start a training, in order: the job's own newest checkpoint; a weights file (`start`),
adapted to the new classes and image size; from scratch, with weights drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from model.config import config_from_dict
from model.initialise import nullcontext_for
from model.interface import Gather, ImageModel
from model.masked import MaskedPatchModel
from model.weights.adapt import adapt
from model.weights.files import check_keys, load_weights
from model.zoo import build
from pipeline.config import TrainJob
from pipeline.data.mixture import AnyView
from pipeline.errors import ConfigError, UserError
from pipeline.events import read_events
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.checkpoint import Checkpoint, sweep
from pipeline.train.copying import fetch_newer
from pipeline.train.engine import in_parts
from pipeline.train.fragments import shapes
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.loading import fill_from_newest
from pipeline.train.network import network_of
from pipeline.train.objective import masked_model
from pipeline.train.remote import RemoteCheckpoints

Fill = Callable[[Gather], None]  # writes every parameter, one whole one after the other


def build_model(
    job: TrainJob, view: AnyView, attempt: Attempt, shape: BatchShape
) -> tuple[ImageModel | MaskedPatchModel, Fill | None]:
    """The network with its starting weights: from `start`, or drawn from the seed, on the CPU.

    Where the engine splits parameters it is split and empty; then what fills it is returned too.
    """
    try:
        with in_parts(job.settings.engine, shape, job.settings.optimizer.clip_norm) as split:
            module = _empty_model(job, view)
        fill = _weights_of(job, module, attempt)
        if split:
            return module, fill
        fill(nullcontext_for)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error),
            "a model of the zoo, and weights that fit it",
            "correct model or start in the configuration",
        ) from error
    return module, None


def _empty_model(job: TrainJob, view: AnyView) -> ImageModel | MaskedPatchModel:
    settings = job.settings
    if settings.objective == "masked_patches":
        if job.start is not None:
            raise ValueError(f"objective masked_patches starts from scratch, found start {job.start!r}")
        config = network_of(settings.model, settings.image_size, 1, representation=False)
        return masked_model(config, settings.masked_patches)
    return build(network_of(settings.model, settings.image_size, view.num_classes), initialise=False)


def _weights_of(job: TrainJob, module: ImageModel | MaskedPatchModel, attempt: Attempt) -> Fill:
    if job.start is None:
        return lambda gather: module.init_weights(torch.Generator().manual_seed(job.seed), gather)
    state, found, _ = load_weights(attempt.run / job.start)
    old = config_from_dict(found)
    keep = job.keep_head and old.num_classes == module.config.num_classes
    adapted = adapt(state, old, module.config, new_head=not keep)
    check_keys(shapes(module), {name: tuple(tensor.shape) for name, tensor in adapted.items()})

    def copy(gather: Gather) -> None:
        for name, parameter in module.named_parameters():
            with torch.no_grad(), gather(parameter):
                parameter.copy_(adapted[name])

    return copy


def _tidy(attempt: Attempt, remote: RemoteCheckpoints | None) -> None:
    """Remove what is incomplete; a store that cannot be written to is found now and not hours later."""
    attempt.check_fence()
    sweep(attempt.job.checkpoints)
    if remote is not None:
        remote.check()
        remote.sweep()


def resume(
    engine: Engine,
    average: PolyakAverage | None,
    attempt: Attempt,
    whole_shapes: Mapping[str, tuple[int, ...]],
    remote: RemoteCheckpoints | None = None,
) -> Checkpoint | None:
    """Load the job's newest good checkpoint into the engine, if there is one; sweep what is incomplete."""
    attempt.world.on_first(lambda: _tidy(attempt, remote))
    checkpoint = load_newest(engine, average, attempt, whole_shapes, remote)
    if checkpoint is None:
        attempt.world.on_first(lambda: _check_new(attempt))
    return checkpoint


def _check_new(attempt: Attempt) -> None:
    """A training that has saved does not begin again from nothing because its checkpoints are gone."""
    saved = [event["step"] for event in read_events(attempt.job.events)[0] if event["event"] == "checkpoint"]
    if saved:
        raise UserError(
            f"step {max(saved)} of job {attempt.digest} was saved, but no checkpoint in "
            f"{attempt.job.checkpoints} can be used",
            "a complete checkpoint whose hashes agree",
            f"put a copy of one back there; or remove {attempt.job.path} to train again from the start",
        )


def load_newest(
    engine: Engine,
    average: PolyakAverage | None,
    attempt: Attempt,
    whole_shapes: Mapping[str, tuple[int, ...]],
    remote: RemoteCheckpoints | None = None,
) -> Checkpoint | None:
    """Load the newest good checkpoint into the engine, if there is one."""
    root, world, warn = attempt.job.checkpoints, attempt.world, attempt.warn
    fragments = engine.fragments() + (average.fragments if average else [])
    newer = None if remote is None else partial(fetch_newer, remote, root, world=world, warn=warn)
    checkpoint = fill_from_newest(root, fragments, whole_shapes, world, warn, newer)
    if checkpoint is not None:
        engine.loaded(int(checkpoint.record["updates"]), checkpoint.record.get("loss_scaler"))
    return checkpoint
