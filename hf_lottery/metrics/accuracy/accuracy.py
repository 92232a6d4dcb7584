"""accuracy, as an evaluate module: `evaluate.load("FOLDER/accuracy").compute(predictions=[0], references=[0])`."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = "The share of examples whose predicted class is the true one, from 0 to 1."


class Accuracy(evaluate.Metric):
    def _info(self):
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: classes.",
            features=datasets.Features({"predictions": classes, "references": classes}),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
