"""The ways to start a training, in order: the job's own newest checkpoint; a weights file (`start`),
adapted to the new classes and image size; from scratch, with weights drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model.config import config_from_dict
from model.interface import ImageModel
from model.masked import MaskedPatchModel
from model.weights.adapt import adapt
from model.weights.files import load_into, load_weights
from model.zoo import create_model
from pipeline.config import TrainJob
from pipeline.data.mixture import AnyView
from pipeline.errors import ConfigError, UserError
from pipeline.events import read_events
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.checkpoint import Checkpoint, find_checkpoint, sweep
from pipeline.train.copying import fetch_newer
from pipeline.train.interface import Engine
from pipeline.train.loading import load_fragments
from pipeline.train.network import network_of
from pipeline.train.objective import masked_model
from pipeline.train.remote import RemoteCheckpoints


def build_model(job: TrainJob, view: AnyView, attempt: Attempt) -> ImageModel | MaskedPatchModel:
    """The network with its starting weights: from `start`, or drawn from the seed, on the CPU."""
    settings = job.settings
    try:
        if settings.objective == "masked_patches":
            return _masked_model(job)
        module = create_model(
            settings.model.name,
            num_classes=view.num_classes,
            image_size=settings.image_size,
            representation=settings.model.representation,
            generator=torch.Generator().manual_seed(job.seed),
            **settings.model.options,
        )
        if job.start is not None:
            state, found, _ = load_weights(attempt.run / job.start)
            old = config_from_dict(found)
            keep = job.keep_head and old.num_classes == module.config.num_classes
            load_into(module, adapt(state, old, module.config, new_head=not keep))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error),
            "a model of the zoo, and weights that fit it",
            "correct model or start in the configuration",
        ) from error
    return module


def _masked_model(job: TrainJob) -> MaskedPatchModel:
    settings = job.settings
    if job.start is not None:
        raise ValueError(f"objective masked_patches starts from scratch, found start {job.start!r}")
    config = network_of(settings.model, settings.image_size, 1, representation=False)
    module = masked_model(config, settings.masked_patches)
    module.init_weights(torch.Generator().manual_seed(job.seed))
    return module


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
    root = attempt.job.checkpoints
    checkpoint = find_checkpoint(root, attempt.world, attempt.warn)
    if remote is not None:
        checkpoint = fetch_newer(remote, root, checkpoint, attempt.world, attempt.warn)
    if checkpoint is not None:
        fragments = engine.fragments() + (average.fragments if average else [])
        load_fragments(checkpoint, fragments, whole_shapes)
        engine.loaded(int(checkpoint.record["updates"]), checkpoint.record.get("loss_scaler"))
    return checkpoint
