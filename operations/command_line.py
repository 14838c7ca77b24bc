"""`rankone`: the pipeline's command line."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from components.launch import text_of
from operations import (
    cluster_commands,
    image_lock,
    models,
    network,
    parameters,
    profiles,
    recipes,
    schedule_commands,
    status,
    version_comparison,
)
from operations.run import Runner, run_here

BAD_INPUT = 2
HERE = "127.0.0.1"
LAST_PORT = 65_535

app = typer.Typer(
    help="Train, judge and promote image-retrieval models: one pipeline, from raw images to a champion in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="Named set of parameters, or a .yaml file. `rankone recipes` lists them."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Set one parameter; may be given many times."),
]


@app.command()
def run(
    recipe: Recipe = None,
    param: Assignments = None,
    runner: Annotated[
        Runner, typer.Option(help="One process a step, or one container of the images that `make images` built.")
    ] = Runner.PROCESSES,
) -> None:
    """Run the whole pipeline on this machine; steps that are done already are not done again.

    Example: [cyan]rankone run --recipe folder -p location=photos -p dimension=128[/]
    """
    values = parameters.resolve({} if recipe is None else recipes.load_recipe(recipe), param or [])
    raise typer.Exit(run_here("rankone" if recipe is None else recipe, values, runner))


@app.command(name="compile")
def compile_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")] = Path("pipeline.yaml"),
    recipe: Recipe = None,
    param: Assignments = None,
    unpinned: Annotated[bool, typer.Option(help="Leave image tags out, to compare two versions of the graph.")] = False,
    lock: Annotated[
        Path | None, typer.Option(help="Image lock of `make images`; build/images.json or RANKONE_IMAGE_LOCK else.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Hardware to ask a cluster for, or a .yaml file. `rankone profiles` lists them.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="package, to upload; or crd: the resources Pipeline and PipelineVersion.")
    ] = "package",
    namespace: Annotated[str | None, typer.Option(help="Of the resources of --format crd.")] = None,
) -> None:
    """Compile the pipeline to the YAML that Kubeflow Pipelines runs.

    A recipe and parameters become the defaults of the compiled pipeline, and so do a profile and its settings; each
    step runs in the image of the lock. A location may be left to those who start runs.
    """
    from operations.compile import FORMATS, RESOURCES, check_namespace, compile_pipeline, write_resources

    if output.is_dir() or output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output is '{output}'; name a file that ends in .yaml.")
    if form not in FORMATS:
        raise ValueError(f"Unknown format '{form}'; choose one of: {', '.join(FORMATS)}.")
    if namespace is not None:
        if form != RESOURCES:
            raise ValueError(f"--namespace is '{namespace}', and only resources have one; add --format {RESOURCES}.")
        check_namespace(namespace)
    hardware = None if profile is None else profiles.load_profile(profile)
    settings, assignments = profiles.split_settings(hardware, param or [])
    values = parameters.resolve({} if recipe is None else recipes.load_recipe(recipe), assignments, reads_images=False)
    images = None if unpinned else images_to_compile(lock)
    compile_pipeline(output, values | settings, pinned=not unpinned, images=images, profile=hardware)
    if form == RESOURCES:
        write_resources(output, output, namespace)
    print(f"Wrote {output}")


def images_to_compile(lock: Path | None) -> dict[str, str] | None:
    """The locked images; None, after a notice, where nobody has built any and no lock was named."""
    path = lock or image_lock.lock_path()
    if lock is None and not path.is_file():
        print(
            "rankone: no image was built here, so the steps name images by the version of their code, which no "
            "registry holds; `make images REGISTRY=registry.example/team PUSH=1` builds, pushes and locks them.",
            file=sys.stderr,
        )
        return None
    locked = image_lock.read_lock(path)
    images = image_lock.images_of(locked)
    here = [name for name in images if not locked[name].pushed]
    if here:
        print(f"rankone: only this machine holds {', '.join(here)}; a cluster needs PUSH=1.", file=sys.stderr)
    return images


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=LAST_PORT, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's page over the embedded store: runs, curves, models. Ctrl-C ends it."""
    from retrieval.tracking import embedded_store

    refuse_port_in_use(port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", embedded_store()]
    command += ["--host", HERE, "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    print(f"MLflow starts at http://{HERE}:{port} (half a minute); Ctrl-C ends it.", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # in a session of its own: Ctrl-C would reach all of its processes at once, which they answer with tracebacks
    server = subprocess.Popen(command, env=os.environ | quiet, start_new_session=True)
    try:
        raise typer.Exit(server.wait())
    except KeyboardInterrupt:
        server.terminate()
        server.wait()


def refuse_port_in_use(port: int) -> None:
    """Refuse a port that the server could not take: it would say so among other lines and end as if all were well.

    Raises:
        ValueError: names it, and how to choose another.
    """
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server has it: not refused by a dead one's
        try:
            asked.bind((HERE, port))
        except OSError as error:
            in_use = "in use: another program listens there"
            why = in_use if error.errno == errno.EADDRINUSE else f"not to be had: {error.strerror}"
            another = port + 1 if port < LAST_PORT else port - 1
            raise ValueError(f"port {port} is {why}; choose another, as with --port {another}.") from None


@app.command(name="parameters")
def parameters_command(recipe: Recipe = None, param: Assignments = None) -> None:
    """List every parameter: its value, the steps that it reaches, what it does."""
    given = parameters.resolve({} if recipe is None else recipes.load_recipe(recipe), param or [], reads_images=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parameter", no_wrap=True)
    for column in ("value", "steps", "what it does"):
        table.add_column(column, overflow="fold")
    for knob in sorted(parameters.all_knobs().values(), key=lambda knob: (knob.steps, knob.name)):
        value = given.get(knob.name, knob.default)
        table.add_row(knob.name, text_of(value), ", ".join(knob.steps), knob.description)
    models.show(table, [])


@app.command(name="inspect")
def inspect_command(
    recipe: Recipe = None,
    param: Assignments = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Show the softmax layer over so many classes too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the layers of the network that a run would train: outputs, parameters, FLOPs for one image.

    Example: [cyan]rankone inspect -p alpha=1.5 -p pooling=gem --classes 100[/]
    """
    values = parameters.resolve({} if recipe is None else recipes.load_recipe(recipe), param or [], reads_images=False)
    steps = parameters.step_params(values, reads_images=False)
    layers = network.network_layers(steps, classes)
    if json:
        print(network.layers_json(steps, layers))
    else:
        Console(highlight=False, markup=False).print(network.layers_table(steps, layers))


@app.command(name="recipes")
def recipes_command() -> None:
    """List the recipes and what each is for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is for")
    for name in recipes.recipe_names():
        table.add_row(name, recipes.describe_recipe(name))
    Console(highlight=False, markup=False).print(table)


@app.command(name="profiles")
def profiles_command() -> None:
    """List the profiles: named hardware for the steps of the pipeline on a cluster."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("profile", no_wrap=True)
    table.add_column("what it asks for")
    for name in profiles.profile_names():
        table.add_row(name, profiles.describe_profile(name))
    Console(highlight=False, markup=False).print(table)


for command in cluster_commands.COMMANDS:
    app.command()(command)
models.add_commands(app)
app.command()(version_comparison.compare)
app.add_typer(schedule_commands.schedule, name="schedule")
app.command(name="status")(status.status_command)


def main() -> None:
    """Run the command line; bad input ends in one clear message and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("RANKONE_TRACEBACK"):
            raise
        print(f"rankone: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
