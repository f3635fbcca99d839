"""The ways to start a training, in order: the job's own newest checkpoint; a weights file (`start`),
adapted to the new classes and image size; from scratch, with weights drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model.config import config_from_dict
from model.interface import ImageModel
from model.weights.adapt import adapt
from model.weights.files import load_into, load_weights
from model.zoo import create_model
from pipeline.config import TrainJob
from pipeline.data.view import View
from pipeline.errors import ConfigError
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.checkpoint import Checkpoint, find_checkpoint, sweep
from pipeline.train.interface import Engine
from pipeline.train.loading import load_fragments


def build_model(job: TrainJob, view: View, attempt: Attempt) -> ImageModel:
    """The network with its starting weights: from `start`, or drawn from the seed, on the CPU."""
    settings = job.settings
    try:
        module = create_model(
            settings.model.name,
            num_classes=view.num_classes,
            image_size=settings.image_size,
            representation=settings.model.representation,
            generator=torch.Generator().manual_seed(job.seed),
            **settings.model.options,
        )
        if job.start is not None:
            state, old_config, _ = load_weights(attempt.run / job.start)
            load_into(module, adapt(state, config_from_dict(old_config), module.config, new_head=True))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error),
            "a model of the zoo, and weights that fit it",
            "correct model or start in the configuration",
        ) from error
    return module


def resume(
    engine: Engine,
    average: PolyakAverage | None,
    attempt: Attempt,
    whole_shapes: Mapping[str, tuple[int, ...]],
) -> Checkpoint | None:
    """Load the job's newest good checkpoint into the engine, if there is one; sweep what is incomplete."""
    root = attempt.job.checkpoints
    if attempt.world.rank == 0:
        attempt.check_fence()
        sweep(root)
    attempt.world.barrier()
    checkpoint = find_checkpoint(root, attempt.world, attempt.warn)
    if checkpoint is not None:
        fragments = engine.fragments() + (average.fragments if average else [])
        load_fragments(checkpoint, fragments, whole_shapes)
        engine.loaded(int(checkpoint.record["updates"]))
    return checkpoint
