"""What 1,500 labelled sentences teach without a teacher: `python benchmarks/few_labels.py DATA --machine "WORDS"`.

The ordinary way is a linear model over words (TF-IDF and a linear SVM, scikit-learn), which can also learn from sentences without labels:
it labels them itself and learns again, twice (self-training). Fitted on the texts of `texts.few` and `texts.rest`, and on CLINC150's 15,000
labelled sentences, and asked the same 4,500 test sentences as the runs of docs/language.md. C, and whether pairs of words count, are those
of the best answers on the few validation sentences. Writes results/<date>-<machine>-few_labels.json; `language.py` puts it into the README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from pages import ROOT, keep
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC
from texts import few, intents, rest

CHOICES, ROUNDS = (0.3, 1.0, 3.0), 2


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """Of test sentences, with its 95 % interval over them."""
    half = 1.96 * float(right.std(ddof=1)) / len(right) ** 0.5
    return {"value": float(right.mean()), "ci95": [float(right.mean()) - half, float(right.mean()) + half]}


def measured(data: Path) -> dict[str, Any]:
    """The accuracy of each way."""
    whole, some, others = intents(data), json.loads(few(data)[0]), rest(data)
    test, labels = (np.array(column) for column in zip(*whole["test"], strict=True))

    judged, right = (np.array(column) for column in zip(*some["val"], strict=True))

    def of_words(train: list[list[str]], unlabelled: list[str], longest: int) -> tuple[float, np.ndarray]:
        """(accuracy on the few validation sentences, which test sentences are right), with runs of up to so many words."""
        texts, known = zip(*train, strict=True)
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, longest)).fit([*texts, *unlabelled])
        rows, validation = words.transform(texts), words.transform(judged)

        def best(inputs: Any, targets: list[str]) -> LinearSVC:
            models = [LinearSVC(C=choice).fit(inputs, targets) for choice in CHOICES]
            return max(models, key=lambda model: float((model.predict(validation) == right).mean()))

        model = best(rows, list(known))
        for _ in range(ROUNDS if unlabelled else 0):
            more = words.transform(unlabelled)
            model = best(sparse.vstack([rows, more]), [*known, *model.predict(more)])
        return float((model.predict(validation) == right).mean()), model.predict(words.transform(test)) == labels

    def fitted(train: list[list[str]], unlabelled: list[str]) -> dict[str, Any]:
        return accuracy(max((of_words(train, unlabelled, longest) for longest in (1, 2)), key=lambda pair: pair[0])[1])

    return {"examples": len(test), "labelled": len(some["train"]), "unlabelled": len(others), "ways": {
        "few": fitted(some["train"], []), "few, self-trained": fitted(some["train"], others), "all": fitted(whole["train"], [])}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--machine", default="a machine that nobody described")
    options = parser.parse_args()
    found = measured(options.data)
    print(json.dumps(found, indent=1), keep("few_labels", options.machine, found).relative_to(ROOT))


if __name__ == "__main__":
    main()
