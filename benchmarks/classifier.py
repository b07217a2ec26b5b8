"""`AutoencoderClassifier` with few labels, beside scikit-learn's classifiers, on scikit-learn's own tables or others.

    python -m benchmarks.classifier
    python -m benchmarks.classifier --data customers.csv:segment claims.csv:paid

60 % of the rows are for training, of which 10 or 30 per class keep their labels; the others are for testing. It prints
test errors (%), as mean ± standard deviation over splits. All methods see columns standardised by all training rows;
of a CSV file, FILE:COLUMN with the classes, the peers see categories as indicators and missing numbers as medians.
The peers have scikit-learn's default settings, except that logistic regression cross-validates its ridge within the
labels, and that label spreading uses a graph of the 10 nearest rows. The classifier's defaults were chosen on other
splits (seeds 0 to 3).
"""

import argparse

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC

from flaxae import finetuning
from flaxae.estimators import AutoencoderClassifier
from flaxae.finetuning.probes import TREES

TABLES = {"digits": load_digits, "wine": load_wine, "cancer": load_breast_cancer}
LOGISTIC = GridSearchCV(LogisticRegression(max_iter=1000), {"C": finetuning.CS}, cv=3, scoring="neg_log_loss")
FOREST = RandomForestClassifier(TREES, random_state=0)
LABELLED_ONLY = {"logistic regression": LOGISTIC, "support vectors": SVC(), "random forest": FOREST}
ALL_ROWS = {
    "self-training": SelfTrainingClassifier(LogisticRegression(max_iter=1000)),
    "label spreading": LabelSpreading(kernel="knn", n_neighbors=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=list(range(10, 15)), help="their seeds")
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 30], help="of each class")
    parser.add_argument("--data", nargs="+", default=list(TABLES), metavar="FILE:COLUMN", help="CSV files")
    options = parser.parse_args()
    everywhere: dict[str, list[float]] = {}
    for name in options.data:
        X, y = TABLES[name](return_X_y=True) if name in TABLES else read(name)
        for per_class in options.labels:
            runs = [test_errors(X, y, per_class, seed) for seed in options.splits]
            print(f"{name}, {per_class} labels a class", flush=True)
            for method in runs[0]:
                found = [run[method] for run in runs]
                everywhere.setdefault(method, []).append(float(np.mean(found)))
                print(f"  {method:22} {np.mean(found):6.2f} ± {np.std(found):.2f}", flush=True)
    print("means of all")
    for method, found in everywhere.items():
        print(f"  {method:22} {np.mean(found):6.2f}")


def read(named: str) -> tuple[pd.DataFrame, np.ndarray]:
    path, _, column = named.rpartition(":")
    frame = pd.read_csv(path)
    frame = frame[frame[column].notna()]
    return frame.drop(columns=column), np.unique(frame[column], return_inverse=True)[1]


def as_numbers(train: pd.DataFrame, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    kinds = train.select_dtypes("number").columns
    made = make_column_transformer(
        (SimpleImputer(strategy="median"), kinds),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), train.columns.difference(kinds)),
    ).fit(train)
    return made.transform(train), made.transform(test)


def test_errors(X: np.ndarray | pd.DataFrame, y: np.ndarray, per_class: int, seed: int) -> dict[str, float]:
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, stratify=y, random_state=seed)
    labels = finetuning.draw(y, per_class * (1 + y.max()), seed=seed)
    known = labels >= 0
    ours = AutoencoderClassifier(random_state=seed).fit(X, labels).predict(X_test)
    if isinstance(X, pd.DataFrame):
        X, X_test = as_numbers(X, X_test)
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    fitted = {name: clone(peer).fit(X[known], labels[known]) for name, peer in LABELLED_ONLY.items()}
    fitted |= {name: clone(peer).fit(X, labels) for name, peer in ALL_ROWS.items()}
    predicted = {name: model.predict(X_test) for name, model in fitted.items()} | {"AutoencoderClassifier": ours}
    return {name: 100 * float(np.mean(made != y_test)) for name, made in predicted.items()}


if __name__ == "__main__":
    main()
