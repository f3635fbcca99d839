"""The registered model as MLflow runs it: encoded images in, class names out. Code, not a pickle.

MLflow keeps a copy of this file with the model and runs it to serve the model (`models:/NAME@champion`,
`mlflow models predict`); the installed vitline does the work. Input: one column `image` of encoded bytes
(JPEG, PNG …; base64 in JSON). Output: `label`, its `index`, and `score`, its share of the softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas
import torch

from pipeline.errors import DataError
from pipeline.train.loop import normalise
from pipeline.train.trained import as_seen, load_trained


class Classifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Holds one exported network; images are prepared as its evaluation prepares them."""

    def load_context(self, context: Any) -> None:
        self.trained = load_trained(Path(context.artifacts["weights"]))

    # Of a table MLflow makes no signature in place of the one that is given; without any hint it warns.
    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """One row for each image.

        Raises:
            DataError: bytes that are no image.
        """
        rows = np.stack([self._pixels(bytes(image)) for image in model_input["image"]])
        # (B, H, W, C) → (B, C, H, W)
        x_BCHW = normalise(torch.from_numpy(rows).permute(0, 3, 1, 2))
        with torch.inference_mode():
            shares = self.trained.model(x_BCHW).float().softmax(dim=1).numpy()
        index = shares.argmax(axis=1)
        return pandas.DataFrame(
            {
                "label": [self.trained.classes[i] for i in index],
                "index": index.astype(np.int64),
                "score": shares[np.arange(len(index)), index].astype(np.float64),
            }
        )

    def _pixels(self, image: bytes) -> Any:
        pixels = as_seen(self.trained, image)
        if isinstance(pixels, str):
            raise DataError(
                f"an image of {len(image)} bytes is {pixels}",
                "encoded images, as JPEG or PNG",
                "leave this row out",
            )
        return pixels


mlflow.models.set_model(Classifier())
