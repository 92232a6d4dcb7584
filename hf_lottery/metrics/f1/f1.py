"""F1, as an evaluate module: `evaluate.load("FOLDER/f1").compute(predictions=[0, 1], references=[0, 1])`."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = "2 · TP / (2 · TP + FP + FN): of class 1 (average='binary'), or the mean over all classes ('macro')."


class F1(evaluate.Metric):
    def _info(self):
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: classes; average: 'binary' or 'macro'.",
            features=datasets.Features({"predictions": classes, "references": classes}),
        )

    def _compute(self, predictions, references, average="binary"):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if average not in ("binary", "macro"):
            raise ValueError(f"average is {average!r}; it must be binary or macro")
        seen = np.union1d(predictions, references)
        if average == "binary" and not np.isin(seen, (0, 1)).all():
            raise ValueError("there are more classes than 0 and 1: use average='macro'")
        of = [1] if average == "binary" else seen
        return {"f1": float(np.mean([self._f1(predictions == label, references == label) for label in of]))}

    @staticmethod
    def _f1(predicted, true):
        both, either = np.sum(predicted & true), np.sum(predicted) + np.sum(true)
        return 2 * both / either if either else 0.0
