"""A validation in one line: of one label, of several, of visits, and where a number is none."""

import math

from placerank.training.told import validation_line


def line(metrics, best, by="auc", **changes):
    of = {"step": 50, "steps": 1000, "epoch": 1, "epochs": 5, "samples_per_s": 7674.4, "seconds_left": 98.0}
    return validation_line(**of | changes, metrics=metrics, best=best, by=by)


def test_one_label():
    metrics = {"auc": 0.80951, "gauc": math.nan, "log_loss": 0.368}
    assert line(metrics, {"step": 50, "auc": 0.80951}) == (
        "step    50  epoch 1/5  log-loss 0.3680  AUC 0.8095  GAUC –  7,674 samples/s  1 min 38 s left  best so far"
    )
    text = line(metrics, {"step": 20, "auc": 0.81}, step=1000, epoch=5, seconds_left=None)
    assert text.startswith("step 1,000  epoch 5/5  ") and text.endswith("7,674 samples/s  best 0.8100 at step 20")
    assert line(metrics, {"step": 0, "auc": None}).endswith("1 min 38 s left")


def test_several_labels_and_an_amount():
    metrics = {
        "auc": 0.7,
        "log_loss": 0.3,
        "auc/label": 0.8,
        "auc/order": 0.6,
        "log_loss/label": 0.4,
        "log_loss/order": 0.2,
    }
    metrics |= {"auc/gmv": 0.65, "calibration/gmv": 1.0321}
    text = line(metrics, {"step": 50, "auc": 0.7})
    assert "log-loss 0.3000 (label 0.4000, order 0.2000)" in text
    assert "AUC 0.7000 (label 0.8000, order 0.6000, gmv 0.6500)" in text
    assert "calibration/gmv 1.0321" in text


def test_visits():
    metrics = {"nll": 3.7512, "nll_first_visits": 5.1, "nll_repeats": 2.25, "impossible": 0.0123}
    text = line(metrics, {"step": 40, "nll": 3.7}, by="nll")
    assert "nats a visit 3.7512  first visits 5.1000  repeats 2.2500  impossible 1.23%" in text
    assert text.endswith("best 3.7000 at step 40")
