"""The connection to a cluster's Kubeflow Pipelines: where it is, who asks, and what went wrong in one line.

Who asks: a token in RANKONE_KFP_TOKEN, else the service account's token that a pod finds mounted, else nobody.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials

from retrieval.redaction import without_credentials

HOST = "RANKONE_KFP_HOST"  # address of the API, e.g. http://localhost:8080 behind a port-forward
TOKEN = "RANKONE_KFP_TOKEN"
NAMESPACE = "RANKONE_KFP_NAMESPACE"  # of a server with many users
PAGE = "RANKONE_KFP_PAGE"  # address of the page, where it is not that of the API
CA = "RANKONE_KFP_CA"  # file of the certificates to trust
MOUNTED_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"  # kfp's own variable and place
MOUNTED_TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"
IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
SECONDS_PER_REQUEST = 30.0


class ClusterError(OSError):
    """Kubeflow Pipelines did not do what it was asked; the message says what to mend.

    Attributes:
        passing: whether the same request may succeed in a moment.
        status: of HTTP; 0 where nobody answered.
    """

    def __init__(self, message: str, passing: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.passing, self.status = passing, status


class Client(kfp.Client):
    """kfp's client with three habits changed: it asks once, waits for no answer for ever, and reads no file at home."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        """What the server says of itself; asked once, where kfp asks five times and prints a traceback each time."""
        del sleep_duration
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=self.health().get("multi_user"))

    def health(self) -> dict[str, Any]:
        """All that the server says of itself: `multi_user`, `tag_name` (its version), `commit_sha`.

        Raises:
            ClusterError: what answers is no Kubeflow Pipelines.
        """
        answer = self.raw("GET", "/apis/v2beta1/healthz")
        try:
            health = json.loads(answer)
        except ValueError:
            health = None
        if not isinstance(health, dict) or "multi_user" not in health:
            raise ClusterError(
                f"{address()} answers, and not as the API of Kubeflow Pipelines: {answer[:60]!r}. "
                f"Is it the page that asks for a login? Then give {TOKEN}; else mend {HOST}."
            )
        return health

    def raw(self, method: str, path: str, query: list[tuple[str, str]] | None = None) -> str:
        """The body that a path of the API answers, as text."""
        response = self.api_client.call_api(
            path,
            method,
            query_params=query or [],
            header_params={},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=SECONDS_PER_REQUEST,
        )
        return response.data.decode(errors="replace")

    @property
    def api_client(self) -> kfp_server_api.ApiClient:
        """What every generated API of this client calls."""
        return self._healthz_api.api_client

    def _load_context_setting_or_default(self) -> None:
        self._context_setting = {"namespace": ""}  # kfp's file in the home folder may be of another cluster

    def set_user_namespace(self, namespace: str) -> None:
        """Use a namespace; kfp would write it to that file."""
        self._context_setting["namespace"] = namespace.strip()


def connect() -> Client:
    """The client of the cluster that the environment names.

    Raises:
        ClusterError: no address, nobody there, no permission, or a server of many users and no namespace.
    """
    with answered(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # kfp's: that it works with servers of version 2
        client = Client(
            host=address(),
            namespace=os.environ.get(NAMESPACE) or "kubeflow",
            existing_token=token(),
            credentials=credentials(),
            ssl_ca_cert=os.environ.get(CA) or None,
            ui_host=page(),
        )
        _never_wait_for_ever(client.api_client)
        many_users = client.health()["multi_user"]
    if not many_users:
        client.set_user_namespace("")  # a server of one user refuses to be asked for a namespace
    elif not client.get_user_namespace():
        raise ClusterError(f"{address()} serves many users; name your namespace: {NAMESPACE}=...")
    return client


def address() -> str:
    """Where the API is.

    Raises:
        ClusterError: nothing says so.
    """
    named = os.environ.get(HOST) or os.environ.get("KF_PIPELINES_ENDPOINT")
    if named and not named.startswith(("http://", "https://")):
        raise ClusterError(f"{HOST} is '{without_credentials(named)}'; it must begin with http:// or https://.")
    if named and without_credentials(named) != named:
        raise ClusterError(f"{HOST} holds a user's name or a password; leave them out, and give a token: {TOKEN}.")
    if named:
        return named.rstrip("/")
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return IN_CLUSTER
    raise ClusterError(
        f"No Kubeflow Pipelines is named. `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80` "
        f"brings it to this machine; then set {HOST}=http://localhost:8080."
    )


def page() -> str:
    """Where the page is that shows runs."""
    return (os.environ.get(PAGE) or os.environ.get("KF_PIPELINES_UI_ENDPOINT") or address()).rstrip("/")


def token() -> str | None:
    """The token that the environment gives.

    Raises:
        ClusterError: it is more than one word; it is not repeated.
    """
    given = os.environ.get(TOKEN, "").strip().removeprefix("Bearer ")
    if len(given.split()) > 1:
        raise ClusterError(f"{TOKEN} has white space in it; give the token alone, in one line.")
    return given or None


def credentials() -> ServiceAccountTokenVolumeCredentials | None:
    """The service account's token where one is mounted and no other is given; read anew for every request."""
    path = Path(os.environ.get(MOUNTED_TOKEN) or MOUNTED_TOKEN_PATH)
    return ServiceAccountTokenVolumeCredentials(str(path)) if path.is_file() and not token() else None


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Turn what the client raises into one line that says what to mend.

    Raises:
        ClusterError: in place of the client's errors.
    """
    try:
        yield
    except kfp_server_api.ApiException as error:
        status = error.status or 0
        raise ClusterError(_refusal(status, _reason(error)), status >= 500 or status in (0, 408, 429), status) from None
    except urllib3.exceptions.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        raise ClusterError(
            f"{address()} does not answer ({type(cause).__name__}); is the address right, {HOST}, "
            "and does the port-forward still run?",
            passing=True,
        ) from None


def _refusal(status: int, reason: str) -> str:
    if status == 401:
        held = f"{TOKEN} is expired or of another server" if token() else f"give a token, {TOKEN}"
        return f"{address()} does not know who asks (401): {held}."
    if status == 403:
        return f"{address()} does not allow this (403): {reason}. Ask for the role, or mend {NAMESPACE}."
    return f"{address()} refused ({status}): {reason}"


def _reason(error: kfp_server_api.ApiException) -> str:
    """What the server said, on one line."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            text = str(answer.get("error_message") or answer.get("message") or answer.get("error") or text)
    return " ".join(text.split())[:400]


def _never_wait_for_ever(api_client: kfp_server_api.ApiClient) -> None:
    """Give every request a time limit: the generated code has none."""
    request = api_client.request

    def limited(*arguments: Any, _request_timeout: Any = None, **named: Any) -> Any:
        return request(*arguments, _request_timeout=_request_timeout or SECONDS_PER_REQUEST, **named)

    api_client.request = limited
