"""A stub of Kubeflow Pipelines' API, version v2beta1, on this machine's loopback.

What a client sends and gets is held to the generated models.

It keeps the rules of the server that matter to a client: names of pipelines and versions are unique, those of recurring
runs are not; parameters exist and have their types, in the version that was uploaded last where none is named; one user
means no namespace and many users mean one; a missing token is refused; a recurring run can be paused and deleted, and
nothing else of it can be changed.
"""

import contextlib
import email
import email.policy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.robfig import parse_six_fields

IMAGES = {
    f"rankone-{name}": f"registry.example/team/rankone-{name}@sha256:{number * 64}"
    for number, name in zip("abcd", ("data", "training", "evaluation", "registry"), strict=True)
}
STEPS = (
    "prepare-data",
    "detect-changes",
    "pretrain",
    "co-cluster",
    "finetune-metric",
    "finetune-softmax",
    "evaluate",
    "promote",
    "announce",
)
BORN = "2026-03-01T10:00:00+00:00"
KINDS = {"STRING": str, "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool, "LIST": list,
         "STRUCT": dict}  # fmt: skip


class Refused(Exception):  # noqa: N818
    """What the server answers instead of what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def through_model(data: Any, model: str) -> Any:
    """Check that data is what the generated model says: it goes through the model and back and is the same.

    Raises:
        AssertionError: a field that the model does not have, or a value that it does not take.
    """

    class Answer:
        data: str

    answer = Answer()
    answer.data = json.dumps(data)
    api = kfp_server_api.ApiClient()
    try:
        back = api.sanitize_for_serialization(api.deserialize(answer, model))
    except (ValueError, TypeError) as error:
        raise AssertionError(f"{data} is no {model}: {error}") from error
    assert back == data, f"{model} lost something: {data} became {back}"
    check_choices(data, model)
    return data


def check_choices(data: Any, kind: str) -> None:
    """Check the values that are one of a list: the generated code deserialises them without a look."""
    inner = re.fullmatch(r"(?:list\[|dict\(str, )(.*)[\])]", kind)
    if inner:
        for item in data.values() if isinstance(data, dict) else data:
            check_choices(item, inner[1])
        return
    model = getattr(kfp_server_api.models, kind, None)
    choices = getattr(model, "allowable_values", None)
    assert choices is None or data in choices, f"{data} is no {kind}; one of {choices}"
    for attribute, attribute_kind in getattr(model, "openapi_types", {}).items():
        name = model.attribute_map[attribute]
        if isinstance(data, dict) and name in data:
            check_choices(data[name], attribute_kind)


class Stub:
    """The server's memory and its rules.

    Attributes:
        token: that requests must carry; none when empty.
        many_users: whether a namespace is needed.
        tag: version that the server says it has.
        fails_at: step at which runs fail.
        away_after: step after whose start the server is away for `away` requests.
        racer: called before an upload, to be quicker.
        stops_runs: how many recurring runs were deleted so that their runs at work were deleted with them.
        broken: method and start of the path of requests that fail, each once, in this order.
        logs: text by pod; on which paths they are found says `log_paths`.
        requests: method and path of all that came, in order.
    """

    def __init__(self) -> None:
        self.token, self.many_users, self.tag = "", False, "2.17.0"
        self.fails_at = ""
        self.away_after, self.away, self.unanswered = "", 0, 0
        self.racer: Callable[[], None] = lambda: None
        self.broken: list[tuple[str, str]] = []
        self.logs: dict[str, str] = {}
        self.log_paths = {"page", "api"}
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self.wrong: list[str] = []
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.platforms: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.stops_runs = 0
        self.looks: dict[str, int] = {}
        self.lock = threading.Lock()
        self.address = ""

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Any:
        """What a request gets.

        Raises:
            Refused: it is refused.
        """
        self.requests.append(f"{method} {path}")
        if self.unanswered:
            self.unanswered -= 1
            raise Refused(503, "no healthy upstream")
        given = headers.get("authorization", "")
        self.tokens.append(given)
        if self.token and given != f"Bearer {self.token}":
            raise Refused(401, "Unauthenticated")
        if self.broken and method == self.broken[0][0] and path.startswith(self.broken[0][1]):
            self.broken.pop(0)
            raise Refused(503, "no healthy upstream")
        for rule_method, pattern, handle in RULES:
            found = re.fullmatch(pattern, path)
            if rule_method == method and found:
                return handle(self, query, headers, body, *found.groups())
        raise Refused(404, f"no such path {path}")

    def health(self, query: Any, headers: Any, body: bytes) -> Any:
        through_model({"multi_user": self.many_users}, "V2beta1GetHealthzResponse")
        return {"multi_user": self.many_users, "tag_name": self.tag, "commit_sha": "0" * 40}  # more than the model has

    def list_pipelines(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.check_namespace(query.get("namespace"), needed=False)
        named = name_of(query)
        found = [entry for entry in self.pipelines.values() if named in (None, entry["display_name"])]
        answer = {"pipelines": found, "total_size": len(found)} if found else {}
        return through_model(answer, "V2beta1ListPipelinesResponse")

    def create_pipeline(self, query: Any, headers: Any, body: bytes) -> Any:
        asked = through_model(json.loads(body), "V2beta1Pipeline")
        self.check_namespace(asked.get("namespace"), needed=False)
        if any(entry["name"] == asked["name"] for entry in self.pipelines.values()):
            raise Refused(409, f"a pipeline named {asked['name']} exists")
        made = {**asked, "pipeline_id": str(uuid.uuid4()), "created_at": BORN}
        self.pipelines[made["pipeline_id"]] = made
        return through_model(made, "V2beta1Pipeline")

    def get_pipeline(self, query: Any, headers: Any, body: bytes, pipeline: str) -> Any:
        if pipeline not in self.pipelines:
            raise Refused(404, f"no pipeline {pipeline}")
        return through_model(self.pipelines[pipeline], "V2beta1Pipeline")

    def get_version(self, query: Any, headers: Any, body: bytes, pipeline: str, version: str) -> Any:
        if self.versions.get(version, {}).get("pipeline_id") != pipeline:
            raise Refused(404, f"no version {version}")
        return through_model(self.versions[version], "V2beta1PipelineVersion")

    def get_experiment(self, query: Any, headers: Any, body: bytes, experiment: str) -> Any:
        if experiment not in self.experiments:
            raise Refused(404, f"no experiment {experiment}")
        return through_model(self.experiments[experiment], "V2beta1Experiment")

    def list_versions(self, query: dict[str, str], headers: Any, body: bytes, pipeline: str) -> Any:
        if pipeline not in self.pipelines:
            raise Refused(404, f"no pipeline {pipeline}")
        named = name_of(query)
        found = [
            entry
            for entry in self.versions.values()
            if entry["pipeline_id"] == pipeline and named in (None, entry["display_name"])
        ]
        if query.get("sort_by") == "created_at desc":
            found.reverse()
        total, found = len(found), found[: int(query.get("page_size") or 10)]
        answer = {"pipeline_versions": found, "total_size": total} if found else {}
        return through_model(answer, "V2beta1ListPipelineVersionsResponse")

    def upload_version(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.racer()
        name, pipeline = query["name"], query["pipelineid"]
        if pipeline not in self.pipelines:
            raise Refused(404, f"no pipeline {pipeline}")
        if any((entry["pipeline_id"], entry["name"]) == (pipeline, name) for entry in self.versions.values()):
            raise Refused(409, f"a version named {name} exists")
        return self.keep_version(pipeline, name, uploaded_file(headers, body))

    def keep_version(self, pipeline: str, name: str, text: str) -> Any:
        specification, *platforms = yaml.safe_load_all(text)
        json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
            for config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
                json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        made = {
            "pipeline_id": pipeline,
            "pipeline_version_id": str(uuid.uuid4()),
            "name": name,
            "display_name": name,
            "created_at": BORN,
            "pipeline_spec": {"pipeline_spec": specification, "platform_spec": platforms[0] if platforms else {}},
        }
        self.versions[made["pipeline_version_id"]] = made
        return through_model(made, "V2beta1PipelineVersion")

    def list_experiments(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.check_namespace(query.get("namespace"))
        named = name_of(query)
        found = [entry for entry in self.experiments.values() if named in (None, entry["display_name"])]
        answer = {"experiments": found, "total_size": len(found)} if found else {}
        return through_model(answer, "V2beta1ListExperimentsResponse")

    def create_experiment(self, query: Any, headers: Any, body: bytes) -> Any:
        asked = through_model(json.loads(body), "V2beta1Experiment")
        self.check_namespace(asked.get("namespace"))
        made = {**asked, "experiment_id": str(uuid.uuid4()), "created_at": BORN}
        self.experiments[made["experiment_id"]] = made
        return through_model(made, "V2beta1Experiment")

    def create_run(self, query: Any, headers: Any, body: bytes) -> Any:
        asked = through_model(json.loads(body), "V2beta1Run")
        if asked["experiment_id"] not in self.experiments:
            raise Refused(404, "no such experiment")
        version = self.versions.get(asked["pipeline_version_reference"]["pipeline_version_id"])
        if version is None:
            raise Refused(404, "no such version")
        check_parameters(version, asked["runtime_config"].get("parameters", {}))
        made = {**asked, "run_id": str(uuid.uuid4()), "created_at": BORN, "state": "PENDING"}
        self.runs[made["run_id"]] = made
        self.looks[made["run_id"]] = 0
        return through_model(made, "V2beta1Run")

    def list_runs(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.check_namespace(query.get("namespace"))
        newest = (
            list(reversed(self.runs.values())) if query.get("sort_by") == "created_at desc" else [*self.runs.values()]
        )
        start = int(query.get("page_token") or 0)
        end = start + int(query.get("page_size") or 10)
        answer = {"runs": newest[start:end], "total_size": len(newest)}
        if end < len(newest):
            answer["next_page_token"] = str(end)
        return through_model({name: value for name, value in answer.items() if value}, "V2beta1ListRunsResponse")

    def get_run(self, query: Any, headers: Any, body: bytes, run: str) -> Any:
        """The run; every look finds it one step further."""
        if run not in self.runs:
            raise Refused(404, f"no run {run}")
        entry = self.runs[run]
        if entry["state"] in ("PENDING", "RUNNING"):
            self.looks[run] += 1
            self.advance(entry, self.looks[run])
        return through_model(entry, "V2beta1Run")

    def advance(self, entry: dict[str, Any], look: int) -> None:
        done = list(STEPS[: look - 1])
        running = STEPS[look - 1] if look <= len(STEPS) else None
        failed = self.fails_at if self.fails_at in done else None
        if running and running == self.away_after:
            self.unanswered = self.away
        details = []
        for number, step in enumerate([*done, *([running] if running and not failed else [])]):
            state = "RUNNING" if step == running else "FAILED" if step == failed else "SUCCEEDED"
            details += task_details(entry["run_id"], step, state, number)
        entry["run_details"] = {"task_details": details}
        entry["state"] = "FAILED" if failed else "RUNNING" if running else "SUCCEEDED"
        if entry["state"] != "RUNNING":
            entry["finished_at"] = "2026-03-01T11:30:00+00:00"

    def terminate(self, query: Any, headers: Any, body: bytes, run: str) -> Any:
        self.runs[run]["state"] = "CANCELED"
        return {}

    def retry(self, query: Any, headers: Any, body: bytes, run: str) -> Any:
        self.fails_at = ""
        self.runs[run]["state"] = "RUNNING"
        return {}

    def create_recurring(self, query: Any, headers: Any, body: bytes) -> Any:
        asked = through_model(json.loads(body), "V2beta1RecurringRun")
        if not asked.get("display_name"):
            raise Refused(400, "The recurring run's name is empty.")
        if asked["experiment_id"] not in self.experiments:
            raise Refused(404, "no such experiment")
        if not 1 <= int(asked["max_concurrency"]) <= 10:
            raise Refused(400, "The max concurrency of the recurring run must be at least 1 and at most 10.")
        check_parameters(self.version_to_run(asked), asked["runtime_config"].get("parameters", {}))
        check_trigger(asked["trigger"])
        if asked["mode"] not in ("ENABLE", "DISABLE"):
            raise Refused(400, "The recurring run's mode is unknown.")
        made = {
            "service_account": "pipeline-runner",
            **asked,
            "recurring_run_id": str(uuid.uuid4()),
            "created_at": BORN,
            "updated_at": BORN,
            "status": f"{asked['mode']}D",
        }
        self.recurring[made["recurring_run_id"]] = made
        return through_model(made, "V2beta1RecurringRun")

    def version_to_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The version that is named, or the one that was uploaded last."""
        reference = asked["pipeline_version_reference"]
        if reference.get("pipeline_id") not in self.pipelines:
            raise Refused(404, "no such pipeline")
        found = [entry for entry in self.versions.values() if entry["pipeline_id"] == reference["pipeline_id"]]
        named = reference.get("pipeline_version_id")
        found = [entry for entry in found if named in (None, entry["pipeline_version_id"])]
        if not found:
            raise Refused(404, "no such version")
        return found[-1]

    def list_recurring(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.check_namespace(query.get("namespace"))
        start = int(query.get("page_token") or 0)
        end = start + int(query.get("page_size") or 10)
        found = [*self.recurring.values()]
        answer = {"recurringRuns": found[start:end], "total_size": len(found)}
        if end < len(found):
            answer["next_page_token"] = str(end)
        answer = {name: value for name, value in answer.items() if value}
        return through_model(answer, "V2beta1ListRecurringRunsResponse")

    def get_recurring(self, query: Any, headers: Any, body: bytes, recurring: str) -> Any:
        if recurring not in self.recurring:
            raise Refused(404, f"no recurring run {recurring}")
        return through_model(self.recurring[recurring], "V2beta1RecurringRun")

    def enable_recurring(self, query: Any, headers: Any, body: bytes, recurring: str) -> Any:
        self.get_recurring(query, headers, body, recurring)
        self.recurring[recurring] |= {"mode": "ENABLE", "status": "ENABLED"}
        return {}

    def disable_recurring(self, query: Any, headers: Any, body: bytes, recurring: str) -> Any:
        self.get_recurring(query, headers, body, recurring)
        self.recurring[recurring] |= {"mode": "DISABLE", "status": "DISABLED"}
        return {}

    def delete_recurring(self, query: Any, headers: Any, body: bytes, recurring: str) -> Any:
        self.get_recurring(query, headers, body, recurring)
        policy = query.get("propagation_policy", "DELETE_PROPAGATION_POLICY_UNSPECIFIED")
        through_model(policy, "V2beta1DeletePropagationPolicy")
        self.stops_runs += policy != "ORPHAN"
        del self.recurring[recurring]
        return {}

    def page_log(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        if "page" not in self.log_paths or query["podname"] not in self.logs:
            raise Refused(404, "no such pod")
        return self.logs[query["podname"]]

    def api_log(self, query: Any, headers: Any, body: bytes, run: str, pod: str) -> Any:
        if "api" not in self.log_paths or pod not in self.logs:
            raise Refused(404, "no such pod")
        return self.logs[pod]

    def check_namespace(self, namespace: str | None, needed: bool = True) -> None:
        if namespace and not self.many_users:
            raise Refused(400, "In single-user mode, no namespace can be given.")
        if needed and self.many_users and not namespace:
            raise Refused(400, "In multi-user mode, a namespace must be given.")


RULES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/apis/v2beta1/healthz", Stub.health),
    ("GET", "/apis/v2beta1/pipelines", Stub.list_pipelines),
    ("POST", "/apis/v2beta1/pipelines", Stub.create_pipeline),
    ("GET", "/apis/v2beta1/pipelines/([^/]+)", Stub.get_pipeline),
    ("GET", "/apis/v2beta1/pipelines/([^/]+)/versions", Stub.list_versions),
    ("GET", "/apis/v2beta1/pipelines/([^/]+)/versions/([^/]+)", Stub.get_version),
    ("POST", "/apis/v2beta1/pipelines/upload_version", Stub.upload_version),
    ("GET", "/apis/v2beta1/experiments", Stub.list_experiments),
    ("POST", "/apis/v2beta1/experiments", Stub.create_experiment),
    ("GET", "/apis/v2beta1/experiments/([^/]+)", Stub.get_experiment),
    ("GET", "/apis/v2beta1/recurringruns", Stub.list_recurring),
    ("POST", "/apis/v2beta1/recurringruns", Stub.create_recurring),
    ("GET", "/apis/v2beta1/recurringruns/([^/:]+)", Stub.get_recurring),
    ("DELETE", "/apis/v2beta1/recurringruns/([^/:]+)", Stub.delete_recurring),
    ("POST", "/apis/v2beta1/recurringruns/([^/:]+):enable", Stub.enable_recurring),
    ("POST", "/apis/v2beta1/recurringruns/([^/:]+):disable", Stub.disable_recurring),
    ("GET", "/apis/v2beta1/runs", Stub.list_runs),
    ("POST", "/apis/v2beta1/runs", Stub.create_run),
    ("GET", "/apis/v2beta1/runs/([^/:]+)", Stub.get_run),
    ("POST", "/apis/v2beta1/runs/([^/:]+):terminate", Stub.terminate),
    ("POST", "/apis/v2beta1/runs/([^/:]+):retry", Stub.retry),
    ("GET", "/k8s/pod/logs", Stub.page_log),
    ("GET", "/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", Stub.api_log),
]


def check_parameters(version: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse parameters that a version does not have, or of another type."""
    known = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    for name, value in given.items():
        if name not in known:
            raise Refused(400, f"parameter {name} is not in the pipeline")
        if not isinstance(value, KINDS[known[name]["parameterType"]]):
            raise Refused(400, f"parameter {name} is no {known[name]['parameterType']}: {value!r}")


def check_trigger(trigger: dict[str, Any]) -> None:
    """Refuse a schedule that is none; a cron line is read as the server's library reads it."""
    if ("cron_schedule" in trigger) == ("periodic_schedule" in trigger):
        raise Refused(400, "exactly one schedule")
    if "cron_schedule" in trigger:
        try:
            parse_six_fields(trigger["cron_schedule"]["cron"])
        except ValueError as error:
            raise Refused(400, f"Schedule cron is not a supported format: {error}") from error
    elif int(trigger["periodic_schedule"]["interval_second"]) < 1:
        raise Refused(400, "Found invalid period schedule interval")


def task_details(run: str, step: str, state: str, number: int) -> list[dict[str, Any]]:
    """The three tasks that the server shows for a step: its driver, itself, and the pod that executes it."""
    began = f"2026-03-01T10:0{number}:00+00:00"
    times = {"create_time": began, "start_time": began}
    if state != "RUNNING":
        times["end_time"] = f"2026-03-01T10:0{number}:45+00:00"
    common = {"run_id": run, "state": state, **times}
    details: list[dict[str, Any]] = [
        {**common, "task_id": f"{step}-d", "display_name": f"{step}-driver", "pod_name": f"{step}-driver-pod"},
        {
            **common,
            "task_id": f"{step}-t",
            "display_name": step,
            "child_tasks": [{"task_id": f"{step}-e", "pod_name": f"{step}-pod"}],
        },
        {**common, "task_id": f"{step}-e", "display_name": "executor", "pod_name": f"{step}-pod"},
    ]
    if state == "FAILED":
        details[1]["error"] = {"code": 2, "message": f"{step} ended with\nexit status 1"}
    return details


def name_of(query: dict[str, str]) -> str | None:
    """The display name that a filter asks for."""
    if not query.get("filter"):
        return None
    predicates = json.loads(query["filter"])["predicates"]
    for predicate in predicates:
        operation = {1: "EQUALS"}.get(predicate["operation"], predicate["operation"])
        snake = {
            re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): value for name, value in predicate.items()
        }
        through_model({**snake, "operation": operation}, "V2beta1Predicate")
    ((key, name),) = [(predicate["key"], predicate["stringValue"]) for predicate in predicates]
    assert key == "display_name"
    return name


def uploaded_file(headers: Any, body: bytes) -> str:
    """The text of the one file of a form."""
    message = email.message_from_bytes(
        f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    (part,) = message.iter_parts()
    assert part.get_param("name", header="content-disposition") == "uploadfile"
    return part.get_payload(decode=True).decode()


@contextlib.contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """Serve a stub on loopback while the body runs; its address. A fault of the stub's checks is raised at the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond()

        def do_POST(self) -> None:
            self.respond()

        def do_DELETE(self) -> None:
            self.respond()

        def respond(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, answer = 200, None
            with stub.lock:
                try:
                    answer = stub.answer(self.command, parts.path, query, self.headers, body)
                except Refused as refusal:
                    status, answer = refusal.status, {"code": refusal.status, "message": refusal.message}
                except Exception as error:
                    stub.wrong.append(f"{self.command} {self.path}: {type(error).__name__}: {error}")
                    status, answer = 500, {"message": "the stub's own check failed"}
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.send_header("content-type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    stub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not stub.wrong, stub.wrong
