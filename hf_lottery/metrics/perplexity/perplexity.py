"""Perplexity, as an evaluate module: `evaluate.load("FOLDER/perplexity").compute(predictions=[6], references=[3])`"""

import math

import datasets
import evaluate
import numpy as np

DESCRIPTION = "e to the power of the mean loss of a token, over all tokens of all sequences."


class Perplexity(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions: summed loss of each sequence, in nats; references: its number of tokens.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        mean = float(np.sum(predictions) / np.sum(references))
        return {"perplexity": math.inf if mean >= 700 else math.exp(mean)}
