"""The pre-trained model of a run, looked into: what the report's section on it shows.

Images are drawn from the split that the pre-training was validated on, evenly over its classes, and seen
as in evaluation. No score is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from model.config import ModelConfig
from model.flops import macs
from pipeline.config import DataMixture, DataView
from pipeline.data.mixture import open_data
from pipeline.data.view import open_view
from pipeline.errors import UserError, VitlineError
from pipeline.report.insight import Insight, draw
from pipeline.rundir import RunDir, read_json
from pipeline.train.trained import load_trained, view_images

SHOWN = 6  # images with a rollout
_FEWEST, _MOST = 8, 128  # images; the paper took 128
_MACS = 2e12  # of all images together: about a minute on two cores

_DATA: TypeAdapter[DataView | DataMixture] = TypeAdapter(DataView | DataMixture)


@dataclass(frozen=True)
class Looked:
    """What was seen, on how many images of which split; or `missing`, the reason why nothing was."""

    insight: Insight
    images: int = 0
    split: str = ""
    missing: str = ""


def look(run: RunDir, digest: str) -> Looked | None:
    """Look into the weights of the finished training `digest`; None if it left none."""
    job, result = read_json(run.job(digest).job), run.job(digest).read_result()
    weights = run.job(digest).weights
    if job is None or result is None or not weights.is_file():
        return None
    try:
        trained = load_trained(weights)
        data = _some_of(run, job["work"], affordable(trained.model.config))
        images, keys = view_images(trained, open_data(data, run.path))
    except VitlineError as error:
        # The results do not need weights or data any more; the section says that they are gone.
        return Looked(Insight({}, {}, {}), missing=error.found)
    split = data.split if isinstance(data, DataView) else data.parts[0].split
    return Looked(draw(trained.model, images, keys, shown=SHOWN), len(images), split)


def affordable(config: ModelConfig) -> int:
    """How many images are looked at: fewer for a larger model."""
    return int(min(max(_FEWEST, _MACS // macs(config)), _MOST))


def _some_of(run: RunDir, work: Mapping[str, Any], wanted: int) -> DataView | DataMixture:
    """About `wanted` of the images that the training was validated on, of its own if on none; of a mixture
    each dataset gives its share."""
    try:
        data = _DATA.validate_python(work.get("validate_on") or work["data"])
    except ValidationError as error:
        raise UserError(
            "the description of the images in job.json is of another version", "this version's", "run again"
        ) from error
    if isinstance(data, DataView):
        return _at_most(run, data, wanted)
    shares = [weight / sum(data.weights) for weight in data.weights]
    parts = [
        _at_most(run, part, max(1, round(wanted * share)))
        for part, share in zip(data.parts, shares, strict=True)
    ]
    return data.model_copy(update={"parts": tuple(parts)})


def _at_most(run: RunDir, view: DataView, wanted: int) -> DataView:
    whole = open_view(view, run.path)
    whole.store.close()
    return view.model_copy(update={"samples": min(wanted, whole.samples)})
