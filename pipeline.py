"""The DAG: which step feeds which.

images -> dataset -> features -> clusters -> model -> tuned model -> evaluation -> registry
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.co_cluster.component import co_cluster
from components.declare import with_knobs_of
from components.evaluate.component import evaluate
from components.finetune_metric.component import finetune_metric
from components.finetune_softmax.component import finetune_softmax
from components.prepare_data.component import prepare_data
from components.pretrain.component import pretrain
from components.promote.component import promote

STEPS: tuple[BaseComponent, ...] = (
    prepare_data,
    pretrain,
    co_cluster,
    finetune_metric,
    finetune_softmax,
    evaluate,
    promote,
)


@dsl.pipeline(name="rankone", description="From raw images to a champion in the model registry.")
@with_knobs_of(*STEPS)
def rankone(knobs: Callable[[BaseComponent], dict[str, Any]]) -> None:
    """Trains, judges and promotes an image-retrieval model; every knob of every step is a parameter."""
    prepared = prepare_data(**knobs(prepare_data))
    dataset = prepared.outputs["dataset"]

    pretrained = pretrain(dataset=dataset, **knobs(pretrain))
    features = pretrained.outputs["features"]

    clusters = co_cluster(dataset=dataset, features=features, **knobs(co_cluster)).outputs["clusters"]

    model = finetune_metric(dataset=dataset, clusters=clusters, **knobs(finetune_metric)).outputs["model"]

    tuned_model = finetune_softmax(dataset=dataset, model=model, **knobs(finetune_softmax)).outputs["tuned_model"]

    evaluated = evaluate(
        dataset=dataset,
        features=features,
        clusters=clusters,
        model=model,
        tuned_model=tuned_model,
        **knobs(evaluate),
    )

    promoted = promote(
        tuned_model=tuned_model,
        evaluation=evaluated.outputs["evaluation"],
        report=evaluated.outputs["report"],
        **knobs(promote),
    )
    promoted.set_caching_options(False)  # the registry may have moved since an equal run
