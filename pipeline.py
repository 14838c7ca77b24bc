"""The DAG: which step feeds which.

images -> dataset -> plan -> features -> clusters -> model -> tuned model -> evaluation -> registry

and at the end, whatever came of it, a message.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask

from components.announce.component import announce
from components.co_cluster.component import co_cluster
from components.declare import with_knobs_of
from components.detect_changes.component import detect_changes
from components.evaluate.component import evaluate
from components.finetune_metric.component import finetune_metric
from components.finetune_softmax.component import finetune_softmax
from components.prepare_data.component import prepare_data
from components.pretrain.component import pretrain
from components.promote.component import promote
from components.settings import Setting

STEPS: tuple[BaseComponent, ...] = (
    prepare_data,
    detect_changes,
    pretrain,
    co_cluster,
    finetune_metric,
    finetune_softmax,
    evaluate,
    promote,
    announce,
)


# the steps that a profile gives its GPU; co_cluster and the two ends of the graph have nothing for it to do
ACCELERATED = ("pretrain", "finetune_metric", "finetune_softmax", "evaluate")

Place = Callable[[PipelineTask, Mapping[str, Any]], None]


def build(settings: Sequence[Setting] = (), place: Place | None = None) -> BaseComponent:
    """The pipeline.

    Args:
        settings: parameters beside the knobs, which `place` receives by name.
        place: says for each task what it asks of a cluster; see operations/placement.py.
    """

    @dsl.pipeline(name="rankone", description="From raw images to a champion in the model registry.")
    @with_knobs_of(*STEPS, settings=settings)
    def rankone(knobs: Callable[[BaseComponent], dict[str, Any]], given: Mapping[str, Any]) -> None:
        """Trains, judges and promotes an image-retrieval model; every knob of every step is a parameter."""
        announced = announce(**knobs(announce))
        announced.set_caching_options(False)  # every run has news of its own
        with dsl.ExitHandler(announced, name="steps"):
            tasks = connect(knobs)
        if place:
            for task in [*tasks, announced]:
                place(task, given)

    return rankone


def connect(knobs: Callable[[BaseComponent], dict[str, Any]]) -> list[PipelineTask]:
    """The graph: a task for every step, fed by those before it."""
    prepared = prepare_data(**knobs(prepare_data))
    dataset = prepared.outputs["dataset"]

    detected = detect_changes(dataset=dataset, **knobs(detect_changes))
    detected.set_caching_options(False)  # the registry may have moved since an equal run
    plan = detected.outputs["plan"]

    pretrained = pretrain(dataset=dataset, plan=plan, **knobs(pretrain))
    backbone, features = pretrained.outputs["backbone"], pretrained.outputs["features"]

    clustered = co_cluster(dataset=dataset, features=features, plan=plan, **knobs(co_cluster))
    clusters = clustered.outputs["clusters"]

    trained = finetune_metric(dataset=dataset, clusters=clusters, plan=plan, **knobs(finetune_metric))
    model = trained.outputs["model"]

    tuned = finetune_softmax(
        dataset=dataset, backbone=backbone, features=features, model=model, plan=plan, **knobs(finetune_softmax)
    )
    tuned_model = tuned.outputs["tuned_model"]

    evaluated = evaluate(
        dataset=dataset,
        features=features,
        clusters=clusters,
        model=model,
        tuned_model=tuned_model,
        plan=plan,
        **knobs(evaluate),
    )

    promoted = promote(
        tuned_model=tuned_model,
        evaluation=evaluated.outputs["evaluation"],
        report=evaluated.outputs["report"],
        plan=plan,
        made_from=detected.outputs["made_from"],
        **knobs(promote),
    )
    promoted.set_caching_options(False)  # the registry may have moved since an equal run

    return [prepared, detected, pretrained, clustered, trained, tuned, evaluated, promoted]


rankone = build()
