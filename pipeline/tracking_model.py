"""The registered model as MLflow runs it: encoded images in, class names out. Code, not a pickle.

MLflow keeps a copy of this file with the model and runs it to serve the model (`models:/NAME@champion`,
`mlflow models predict`); the installed vitline does the work. Input: one column `image` of encoded bytes
(JPEG, PNG …; base64 in JSON). Output: `label`, its `index`, and `score`, its share of the softmax.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas
import torch

from model.config import config_from_dict
from model.weights.files import load_into, load_weights
from model.zoo import build
from pipeline.config import AugmentSettings
from pipeline.data.augment import evaluation_pixels
from pipeline.data.decode import decode
from pipeline.errors import DataError
from pipeline.train.loop import normalise


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Holds one exported network; images are prepared as its evaluation prepares them."""

    def load_context(self, context: Any) -> None:
        state, config, header = load_weights(context.artifacts["weights"])
        self.network = build(config_from_dict(config), initialise=True)
        load_into(self.network, state)
        self.network.eval()
        self.classes = json.loads(header["classes"])
        how = json.loads(header["preprocessing"])
        self.size = int(how["image_size"])
        self.settings = AugmentSettings(evaluate=how["evaluate"], larger=how["larger"])

    # No type hints here: MLflow would make a signature of them in place of the one that is given.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One row for each image.

        Raises:
            DataError: bytes that are no image.
        """
        rows = np.stack([self._pixels(bytes(image)) for image in model_input["image"]])
        # (B, H, W, C) → (B, C, H, W)
        x_BCHW = normalise(torch.from_numpy(rows).permute(0, 3, 1, 2))
        with torch.inference_mode():
            shares = self.network(x_BCHW).float().softmax(dim=1).numpy()
        index = shares.argmax(axis=1)
        return pandas.DataFrame(
            {
                "label": [self.classes[i] for i in index],
                "index": index.astype(np.int64),
                "score": shares[np.arange(len(index)), index].astype(np.float64),
            }
        )

    def _pixels(self, image: bytes) -> Any:
        pixels = decode(image)
        if isinstance(pixels, str):
            raise DataError(
                f"an image of {len(image)} bytes is {pixels}",
                "encoded images, as JPEG or PNG",
                "leave this row out",
            )
        return evaluation_pixels(self.settings, pixels, self.size)


mlflow.models.set_model(Classifier())
