"""The stand-in itself, seen through the official client and over plain HTTP: does it behave as an API server does?"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from actions.adapters.programs import Program
from actions.site import WorkloadKind, WorkloadRef
from bot.demo.cluster import ClusterStandIn
from tests.fakes.cluster_worlds import manifest

pytestmark = pytest.mark.integration

Json = dict[str, Any]
NS = "production"
COMMAND = "demo.superprismora.com/command"
READY_URL = "demo.superprismora.com/ready-url"


class Bench:
    """The stand-in and a client of it. `send` speaks HTTP without a client library."""

    def __init__(self, cluster: ClusterStandIn, http: aiohttp.ClientSession, api: Any) -> None:
        self.cluster = cluster
        self.api = api
        self._http = http

    async def send(
        self, method: str, path: str, body: Any = None, *, how: str = "application/json", **query: str
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self._http.request(
            method, self.cluster.url + path, data=data, params=query, headers={"Content-Type": how}
        ) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def good(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        how = query.pop("how", "application/json")
        code, found = await self.send(method, path, body, how=how, **query)
        assert code < 300, found
        return found


@pytest.fixture
async def bench(server_directory: Path) -> AsyncIterator[Bench]:
    async with ClusterStandIn(server_directory) as cluster:
        loaded = client.Configuration()
        config.load_kube_config(config_file=str(cluster.kubeconfig), client_configuration=loaded)  # type: ignore[no-untyped-call]
        trust = ssl.create_default_context(cafile=loaded.ssl_ca_cert)
        headers = {"Authorization": f"Bearer {cluster.token}"}
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
            api = client.ApiClient(loaded)
            yield Bench(cluster, http, api)
            api.close()  # type: ignore[no-untyped-call]


async def until(condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 15.0) -> Any:
    end = asyncio.get_running_loop().time() + seconds
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < end, f"still not: {what}"
        await asyncio.sleep(0.05)
    return found


def deployment(name: str = "api", *, replicas: int = 1, **annotations: str) -> Json:
    body = manifest(WorkloadRef("here", NS, WorkloadKind.DEPLOYMENT, name), replicas=replicas, image="app:1")
    body["spec"]["template"]["metadata"]["annotations"] = {
        f"demo.superprismora.com/{key.replace('_', '-')}": value for key, value in annotations.items()
    }
    return body


def deployments(name: str = "") -> str:
    return f"/apis/apps/v1/namespaces/{NS}/deployments" + (f"/{name}" if name else "")


def pods(name: str = "") -> str:
    return f"/api/v1/namespaces/{NS}/pods" + (f"/{name}" if name else "")


async def ready(bench: Bench, name: str, count: int) -> Json:
    async def look() -> Any:
        found = await bench.good("GET", deployments(name))
        return found if (found.get("status") or {}).get("availableReplicas") == count else None

    found: Json = await until(look, f"{count} of {name} available")
    return found


async def test_a_wrong_token_gets_401(bench: Bench) -> None:
    trust = ssl.create_default_context(cafile=bench.api.configuration.ssl_ca_cert)
    headers = {"Authorization": "Bearer wrong"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as http,
        http.get(bench.cluster.url + "/version", headers=headers) as answer,
    ):
        assert (answer.status, (await answer.json())["reason"]) == (401, "Unauthorized")


async def test_the_kubeconfig_is_private(bench: Bench) -> None:
    assert bench.cluster.kubeconfig.stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- versions and patches


async def test_objects_get_uid_version_generation_and_defaults(bench: Bench) -> None:
    code, found = await bench.send("POST", deployments(), deployment())
    assert (code, found["metadata"]["generation"], found["spec"]["progressDeadlineSeconds"]) == (201, 1, 600)
    assert found["metadata"]["uid"]
    code, status = await bench.send("POST", deployments(), deployment())
    assert (code, status["reason"], status["kind"]) == (409, "AlreadyExists", "Status")
    code, status = await bench.send("GET", deployments("none"))
    assert (code, status["reason"]) == (404, "NotFound")


async def test_a_stale_version_is_refused_with_409(bench: Bench) -> None:
    created = await bench.good(
        "POST", f"/api/v1/namespaces/{NS}/configmaps", {"metadata": {"name": "c"}, "data": {"a": "1"}}
    )
    path = f"/api/v1/namespaces/{NS}/configmaps/c"
    await bench.good("PUT", path, {**created, "data": {"a": "2"}})
    code, status = await bench.send("PUT", path, {**created, "data": {"a": "3"}})
    assert (code, status["reason"]) == (409, "Conflict")
    stale = {"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "data": {"a": "4"}}
    code, _ = await bench.send("PATCH", path, stale, how="application/merge-patch+json")
    assert code == 409
    assert (await bench.good("GET", path))["data"] == {"a": "2"}


async def test_generation_follows_the_spec_alone(bench: Bench) -> None:
    await bench.good("POST", deployments(), deployment())
    label = {"metadata": {"labels": {"a": "b"}}}
    found = await bench.good("PATCH", deployments("api"), label, how="application/merge-patch+json")
    assert found["metadata"]["generation"] == 1
    more = {"spec": {"replicas": 2}}
    found = await bench.good("PATCH", deployments("api"), more, how="application/merge-patch+json")
    assert found["metadata"]["generation"] == 2
    again = await bench.good("PATCH", deployments("api"), more, how="application/merge-patch+json")
    assert again["metadata"]["generation"] == 2
    assert (await ready(bench, "api", 2))["status"]["observedGeneration"] == 2


async def test_strategic_merge_keeps_the_sidecar_and_merge_patch_drops_it(bench: Bench) -> None:
    await bench.good("POST", deployments(), deployment())
    containers = [{"name": "app", "image": "app:2", "env": [{"name": "EXTRA", "value": "1"}]}]
    body = {"spec": {"template": {"spec": {"containers": containers}}}}
    found = await bench.good("PATCH", deployments("api"), body, how="application/strategic-merge-patch+json")
    first, second = found["spec"]["template"]["spec"]["containers"]
    assert (first["image"], second["name"]) == ("app:2", "sidecar")
    assert {entry["name"] for entry in first["env"]} == {"ROLE", "EXTRA"}
    gone = {"spec": {"template": {"spec": {"containers": [{"name": "sidecar", "$patch": "delete"}]}}}}
    found = await bench.good("PATCH", deployments("api"), gone, how="application/strategic-merge-patch+json")
    assert [one["name"] for one in found["spec"]["template"]["spec"]["containers"]] == ["app"]
    only = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app:3"}]}}}}
    found = await bench.good("PATCH", deployments("api"), only, how="application/merge-patch+json")
    assert found["spec"]["template"]["spec"]["containers"] == [{"name": "app", "image": "app:3"}]


async def test_json_patch_and_its_failed_test(bench: Bench) -> None:
    await bench.good("POST", deployments(), deployment())
    steps = [
        {"op": "test", "path": "/spec/replicas", "value": 1},
        {"op": "replace", "path": "/spec/replicas", "value": 2},
        {"op": "add", "path": "/spec/template/spec/containers/-", "value": {"name": "third", "image": "x:1"}},
        {"op": "remove", "path": "/spec/template/spec/containers/1"},
    ]
    how = "application/json-patch+json"
    found = await bench.good("PATCH", deployments("api"), steps, how=how)
    assert found["spec"]["replicas"] == 2
    assert [one["name"] for one in found["spec"]["template"]["spec"]["containers"]] == ["app", "third"]
    code, _ = await bench.send("PATCH", deployments("api"), steps, how=how)
    assert code == 422


async def test_custom_objects_take_no_strategic_merge(bench: Bench) -> None:
    path = "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications"
    await bench.good("POST", path, {"metadata": {"name": "a"}, "spec": {"x": 1}})
    code, _ = await bench.send("PATCH", f"{path}/a", {"spec": {}}, how="application/strategic-merge-patch+json")
    assert code == 415


async def test_dry_run_changes_nothing(bench: Bench) -> None:
    found = await bench.good("POST", deployments(), deployment(), dryRun="All")
    assert found["spec"]["replicas"] == 1
    assert (await bench.send("GET", deployments("api")))[0] == 404
    await bench.good("POST", deployments(), deployment())
    body = {"spec": {"replicas": 5}}
    shown = await bench.good("PATCH", deployments("api"), body, how="application/merge-patch+json", dryRun="All")
    assert shown["spec"]["replicas"] == 5
    assert (await bench.good("GET", deployments("api")))["spec"]["replicas"] == 1
    await bench.good("DELETE", deployments("api"), dryRun="All")
    await bench.good("GET", deployments("api"))


async def test_mistakes_are_refused_with_422(bench: Bench) -> None:
    wrong = deployment()
    wrong["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    code, status = await bench.send("POST", deployments(), wrong)
    assert (code, status["reason"]) == (422, "Invalid")
    code, _ = await bench.send("POST", deployments(), deployment(replicas=-1))
    assert code == 422
    code, status = await bench.send("POST", "/apis/apps/v1/namespaces/none/deployments", deployment())
    assert (code, 'namespaces "none" not found' in status["message"]) == (404, True)


# ---------------------------------------------------------------- server-side apply


async def test_apply_creates_repeats_conflicts_and_forces(bench: Bench) -> None:
    how = "application/apply-patch+yaml"
    body = {"apiVersion": "apps/v1", "kind": "Deployment", **deployment(replicas=2)}
    code, found = await bench.send("PATCH", deployments("api"), body, how=how, fieldManager="one")
    assert code == 201
    await ready(bench, "api", 2)
    settled = await bench.good("GET", deployments("api"))
    again = await bench.good("PATCH", deployments("api"), body, how=how, fieldManager="one")
    assert again["metadata"]["resourceVersion"] == settled["metadata"]["resourceVersion"]

    scaled = {"spec": {"replicas": 3}}
    await bench.good("PATCH", deployments("api"), scaled, how="application/merge-patch+json", fieldManager="scaler")
    code, status = await bench.send("PATCH", deployments("api"), body, how=how, fieldManager="one")
    assert (code, '"scaler": .spec.replicas' in status["message"]) == (409, True)
    found = await bench.good("PATCH", deployments("api"), body, how=how, fieldManager="one", force="true")
    assert found["spec"]["replicas"] == 2
    owners = {entry["manager"] for entry in found["metadata"]["managedFields"]}
    assert "one" in owners
    assert "scaler" not in owners


async def test_apply_removes_what_it_no_longer_names_and_leaves_the_rest(bench: Bench) -> None:
    how, path = "application/apply-patch+yaml", f"/api/v1/namespaces/{NS}/configmaps/c"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    await bench.good("PATCH", path, {**body, "data": {"a": "1", "b": "2"}}, how=how, fieldManager="one")
    await bench.good("PATCH", path, {"data": {"c": "3"}}, how="application/merge-patch+json", fieldManager="other")
    found = await bench.good("PATCH", path, {**body, "data": {"a": "1"}}, how=how, fieldManager="one")
    assert found["data"] == {"a": "1", "c": "3"}


async def test_the_dynamic_client_applies(bench: Bench, tmp_path: Path) -> None:
    def work() -> Any:
        dynamic = DynamicClient(bench.api, cache_file=str(tmp_path / "discovery.json"))  # type: ignore[no-untyped-call]
        kind = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
        body = {"apiVersion": "apps/v1", "kind": "Deployment", **deployment()}
        return kind.server_side_apply(body=body, name="api", namespace=NS, field_manager="one").to_dict()

    assert (await asyncio.to_thread(work))["spec"]["replicas"] == 1


# ---------------------------------------------------------------- selectors, watch, deletion


async def test_label_and_field_selectors(bench: Bench) -> None:
    for name, tier in (("a", "web"), ("b", "db"), ("c", "")):
        labels = {"tier": tier} if tier else {}
        await bench.good("POST", f"/api/v1/namespaces/{NS}/configmaps", {"metadata": {"name": name, "labels": labels}})

    async def names(**query: str) -> str:
        found = await bench.good("GET", f"/api/v1/namespaces/{NS}/configmaps", **query)
        return "".join(item["metadata"]["name"] for item in found["items"])

    assert await names(labelSelector="tier=web") == "a"
    assert await names(labelSelector="tier!=web") == "bc"
    assert await names(labelSelector="tier in (web, db),tier notin (db)") == "a"
    assert await names(labelSelector="!tier") == "c"
    assert await names(labelSelector="no=such") == ""
    assert await names(fieldSelector="metadata.name=b") == "b"
    assert (await bench.send("GET", pods(), labelSelector="((("))[0] == 400


async def test_a_watch_tells_what_happens(bench: Bench) -> None:
    start = (await bench.good("GET", f"/api/v1/namespaces/{NS}/configmaps"))["metadata"]["resourceVersion"]

    def follow() -> list[tuple[str, str]]:
        seen = []
        stream = watch.Watch().stream(  # type: ignore[no-untyped-call]
            client.CoreV1Api(bench.api).list_namespaced_config_map, NS, resource_version=start, timeout_seconds=10
        )
        for event in stream:
            seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                break
        return seen

    path = f"/api/v1/namespaces/{NS}/configmaps"
    await bench.good("POST", path, {"metadata": {"name": "before-the-watch"}})
    following = asyncio.create_task(asyncio.to_thread(follow))
    await asyncio.sleep(0.3)
    await bench.good("PATCH", f"{path}/before-the-watch", {"data": {"a": "1"}}, how="application/merge-patch+json")
    await bench.good("DELETE", f"{path}/before-the-watch")
    name = "before-the-watch"
    assert await following == [("ADDED", name), ("MODIFIED", name), ("DELETED", name)]


async def test_deleting_an_owner_takes_its_dependents(bench: Bench) -> None:
    await bench.good("POST", deployments(), deployment(replicas=2))
    await ready(bench, "api", 2)
    await bench.good("DELETE", deployments("api"))

    async def empty() -> bool:
        found = await bench.good("GET", pods())
        sets = await bench.good("GET", f"/apis/apps/v1/namespaces/{NS}/replicasets")
        return not found["items"] and not sets["items"]

    await until(empty, "pods and ReplicaSets gone")


# ---------------------------------------------------------------- workloads


async def test_a_bad_image_keeps_the_old_pods_and_misses_the_deadline(bench: Bench) -> None:
    body = deployment(replicas=2)
    body["spec"]["progressDeadlineSeconds"] = 1
    await bench.good("POST", deployments(), body)
    await ready(bench, "api", 2)
    change = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app:broken"}]}}}}
    await bench.good("PATCH", deployments("api"), change, how="application/strategic-merge-patch+json")

    async def late() -> Any:
        found = (await bench.good("GET", deployments("api")))["status"]
        reasons = {one["type"]: one["reason"] for one in found["conditions"]}
        return found if reasons["Progressing"] == "ProgressDeadlineExceeded" else None

    status = await until(late, "the deadline is exceeded")
    assert status["availableReplicas"] == 2
    events = await bench.good("GET", f"/api/v1/namespaces/{NS}/events")
    assert any(event["reason"] == "Failed" and event["eventTime"] is None for event in events["items"])


async def test_pods_are_real_processes_with_environment_and_logs(bench: Bench) -> None:
    bench.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": NS}, "data": {"HOST": "db-1"}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s", "namespace": NS},
            "stringData": {"p": "hidden"},
        },
    )
    body = deployment(command=json.dumps(["sh", "-c", "echo $HOST $ROLE ${#PASSWORD} $POD; exec sleep 600"]))
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["envFrom"] = [{"configMapRef": {"name": "c"}}]
    container["env"] += [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    bench.cluster.apply(body)
    await ready(bench, "api", 1)
    pod = (await bench.good("GET", pods()))["items"][0]["metadata"]["name"]
    _, text = await bench.send("GET", pods(pod) + "/log", container="app", tailLines="1")
    assert text == f"db-1 api 6 {pod}\n"
    assert sleepers(bench.cluster.directory) == 1
    await bench.good("PUT", deployments("api") + "/scale", {"metadata": {"name": "api"}, "spec": {"replicas": 0}})

    async def gone() -> bool:
        return not (await bench.good("GET", pods()))["items"] and sleepers(bench.cluster.directory) == 0

    await until(gone, "the process ended with its pod")


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench) -> None:
    words = ["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]
    bench.cluster.apply(deployment(command=json.dumps(words)))
    await ready(bench, "api", 1)
    await bench.good("DELETE", deployments("api"))
    await asyncio.sleep(0.5)
    found = (await bench.good("GET", pods()))["items"]
    assert ["deletionTimestamp" in pod["metadata"] for pod in found] == [True]

    async def gone() -> bool:
        return not (await bench.good("GET", pods()))["items"]

    await until(gone, "the pod ended after its two seconds", 6)


async def test_a_crashing_process_backs_off(bench: Bench) -> None:
    bench.cluster.apply(deployment(command='["sh", "-c", "echo tried; exit 3"]'))

    async def crashed() -> Any:
        found = (await bench.good("GET", pods()))["items"]
        statuses = found[0]["status"].get("containerStatuses") or [] if found else []
        return statuses[0] if statuses and statuses[0]["restartCount"] >= 2 else None

    status = await until(crashed, "two restarts")
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status["lastState"]["terminated"]["exitCode"] == 3


async def test_readiness_and_a_service_in_front(bench: Bench) -> None:
    words = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
    bench.cluster.apply(deployment(command=json.dumps(words), ready_url="http://127.0.0.1:{port}/"))
    annotations = {"demo.superprismora.com/listen": "0"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "api", "namespace": NS, "annotations": annotations},
    }
    bench.cluster.apply({**service, "spec": {"selector": {"app": "api"}}})
    await ready(bench, "api", 1)
    found = await bench.good("GET", f"/api/v1/namespaces/{NS}/services/api")
    port = found["metadata"]["annotations"]["demo.superprismora.com/listening"]
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/") as answer:
        assert answer.status == 200
    await bench.good("PUT", deployments("api") + "/scale", {"metadata": {"name": "api"}, "spec": {"replicas": 0}})
    await until(lambda: _no_pods(bench), "no pod left")
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/"):
            pass


async def _no_pods(bench: Bench) -> bool:
    return not (await bench.good("GET", pods()))["items"]


def job(name: str, words: list[str], **spec: Any) -> Json:
    template = {
        "metadata": {"annotations": {COMMAND: json.dumps(words)}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "work", "image": "work:1"}]},
    }
    body = {"backoffLimit": 0, "template": template, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NS}, "spec": body}


async def test_jobs_run_processes_and_tell_how_they_ended(bench: Bench) -> None:
    jobs = f"/apis/batch/v1/namespaces/{NS}/jobs"
    bench.cluster.apply(
        job("good", ["sh", "-c", "echo done"]),
        job("bad", ["sh", "-c", "exit 4"]),
        job("slow", ["sleep", "600"], activeDeadlineSeconds=1),
    )

    async def ended() -> Any:
        found = {one["metadata"]["name"]: one["status"] for one in (await bench.good("GET", jobs))["items"]}
        return found if all((status or {}).get("conditions") for status in found.values()) else None

    found = await until(ended, "all jobs ended")
    assert (found["good"]["succeeded"], found["good"]["conditions"][0]["type"]) == (1, "Complete")
    assert (found["bad"]["failed"], found["bad"]["conditions"][0]["reason"]) == (1, "BackoffLimitExceeded")
    assert found["slow"]["conditions"][0]["reason"] == "DeadlineExceeded"
    pod = (await bench.good("GET", pods(), labelSelector="job-name=good"))["items"][0]
    assert pod["status"]["phase"] == "Succeeded"
    assert (await bench.send("GET", pods(pod["metadata"]["name"]) + "/log"))[1] == "done\n"


# ---------------------------------------------------------------- faults and the end


async def test_faults_are_ordered_over_http(bench: Bench) -> None:
    await bench.good(
        "POST", "/_control/faults", {"what": "forbid", "verb": "get", "resource": "deployments", "times": 1}
    )
    code, status = await bench.send("GET", deployments("api"))
    assert (code, status["reason"]) == (403, "Forbidden")
    assert (await bench.send("GET", deployments("api")))[0] == 404
    await bench.good("POST", "/_control/faults", {"what": "drop"})
    with pytest.raises(aiohttp.ClientError):
        await bench.send("GET", deployments("api"))
    await bench.good("DELETE", "/_control/faults")
    assert (await bench.send("POST", "/_control/faults", {"what": "nonsense"}))[0] == 400


async def test_the_typed_client_reads_the_version_and_refuses_as_usual(bench: Bench) -> None:
    assert (await asyncio.to_thread(client.VersionApi(bench.api).get_code)).major == "1"
    with pytest.raises(ApiException, match="not found"):
        await asyncio.to_thread(client.AppsV1Api(bench.api).read_namespaced_deployment, "none", NS)


async def test_a_port_in_use_is_an_error_and_leaves_nothing(server_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            async with ClusterStandIn(server_directory, port=taken.getsockname()[1]):
                pass


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_pods_end_with_the_process_that_serves(server_directory: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "bot.demo.cluster", "--directory", str(server_directory / "cluster")]
    with Program.start(argv, stdout=True, cwd=Path.cwd()) as program:
        assert program.stdout is not None
        said = json.loads(await asyncio.to_thread(program.stdout.readline))
        loaded = client.Configuration()
        config.load_kube_config(config_file=said["kubeconfig"], client_configuration=loaded)  # type: ignore[no-untyped-call]
        with contextlib.closing(client.ApiClient(loaded)) as api:
            body: Any = deployment(command='["sleep", "600"]', replicas=2)
            await asyncio.to_thread(client.AppsV1Api(api).create_namespaced_deployment, NS, body)

        async def both() -> bool:
            return sleepers(server_directory) == 2

        await until(both, "two processes")
        os.kill(program.pid, number)

        async def none() -> bool:
            return sleepers(server_directory) == 0

        await until(none, "no process left", 5)


def sleepers(directory: Path) -> int:
    """Live `sleep 600` that work below the directory."""
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            count += (
                process.name() == "sleep"
                and "600" in process.cmdline()
                and Path(process.cwd()).is_relative_to(directory)
            )
    return count
