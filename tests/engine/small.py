"""A budget with which the DAG takes a minute or two and still makes a model that is promoted."""

SMALL = {
    "classifier": "squeezenet1_0",
    "pretrain_epochs": "1",
    "channels": "[16]",
    "adjust_epochs": "1",
    "metric_epochs": "2",
    "softmax_epochs": "1",
    "max_quarantined_fraction": "0.2",  # digits of 8 x 8 repeat
    "bootstrap_resamples": "200",
    "threshold_trials": "20",
    "occlusion_queries": "50",
    "gallery_queries": "6",
    "minimum_recall_at_1": "0.2",
}
