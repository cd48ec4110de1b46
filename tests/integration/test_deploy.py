"""The manifests under deploy/, held against the code: names, roles, settings, and the rights that are really used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from actions.adapters import kubernetes_jobs as jobs
from actions.adapters.kubernetes import KubernetesCluster
from actions.adapters.live_objects import ClusterObjects
from actions.adapters.sealing_keys import ClusterSealingKeys
from actions.adapters.secret_objects import ClusterSecrets
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import RecoveryTarget, ScratchRequest
from actions.backup.secret_copies import SEALED_SECRET, SECRET
from actions.ports import JobKind, JobSpec, JobState, no_progress
from actions.site import ClusterAccess, JobPlace, Site, WorkloadKind, WorkloadRef
from bot import world as job_world
from bot.demo.cluster import ClusterStandIn
from bot.demo.cluster.requests import Use
from bot.plan_file import DrPlan, load
from bot.roles import TOGETHER, Role
from bot.settings import ExecutorKind, Settings
from bot.site import site_of
from tests.contract.test_executor_port import begun, spec
from tests.dump_world import Keys
from tests.fakes.cluster_worlds import manifest
from tests.fixtures.executors import ExecutorWorld
from tests.fixtures.waiting import until

pytestmark = pytest.mark.integration

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SEALING = "sealed-secrets"
"""The namespace of the SealedSecrets controller, which holds nothing but its keys."""
JOBS = ("job", "prover")
"""The components of Jobs, which the worker makes."""
PROVER = ("dr", "superprismora-prover")
"""The Secret with the keys that only read."""
Rights = set[tuple[str, str, str]]  # group, resource, verb


def documents(*names: str) -> list[Json]:
    yaml = YAML(typ="safe", pure=True)
    paths = [DEPLOY / name for name in names] if names else sorted(DEPLOY.glob("*.yaml"))
    return [found for path in paths for found in yaml.load_all(path.read_text()) if found]


def of_kind(kind: str) -> list[Json]:
    return [found for found in documents() if found["kind"] == kind]


def granted(namespace: str, account: str = "drbot-worker") -> Rights:
    """What the account may do there, by its bindings."""
    names = {
        binding["roleRef"]["name"]
        for binding in of_kind("RoleBinding")
        if binding["metadata"]["namespace"] == namespace
        and any(subject["name"] == account for subject in binding["subjects"])
    }
    return {
        (group, resource, verb)
        for role in of_kind("Role")
        if role["metadata"]["namespace"] == namespace and role["metadata"]["name"] in names
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def readable(account: str) -> set[tuple[str, str]]:
    """The Secrets that the account may read."""
    return {
        (role["metadata"]["namespace"], name)
        for binding in of_kind("RoleBinding")
        if any(subject["name"] == account for subject in binding["subjects"])
        for role in of_kind("Role")
        if role["metadata"]["namespace"] == binding["metadata"]["namespace"]
        and role["metadata"]["name"] == binding["roleRef"]["name"]
        for rule in role["rules"]
        if "secrets" in rule["resources"] and role["metadata"]["namespace"] != SEALING
        for name in rule["resourceNames"]
    }


def offered(name: str) -> Rights:
    """What a file gives once the rules that stand in it as comments are taken in."""
    rules = re.findall(
        r"# - apiGroups: \[(.*)\]\n +#   resources: \[(.*)\]\n +#   verbs: \[(.*)\]", (DEPLOY / name).read_text()
    )
    return {
        (group.strip('" '), resource.strip(), verb.strip())
        for group, resource, verbs in rules
        for verb in verbs.split(",")
    }


def used(seen: set[Use], namespace: str) -> Rights:
    return {(use.group, use.resource, use.verb) for use in seen if use.namespace == namespace}


def pod_specs() -> Iterator[tuple[Json, Json]]:
    for found in [*of_kind("Deployment"), *of_kind("StatefulSet"), *of_kind("Job")]:
        yield found, found["spec"]["template"]["spec"]


class Blank(SecretReferences):
    """Addresses are not known in a test; their references stand for them."""

    async def resolve(self, ref: str) -> str:
        return ref


@pytest.fixture
def plan() -> DrPlan:
    return load(ROOT / "dr-plan.yml")


@pytest.fixture
async def place(plan: DrPlan) -> JobPlace:
    found = (await site_of(plan, Blank())).jobs
    assert found is not None
    return found


def test_everything_is_applied() -> None:
    [kustomization] = documents("kustomization.yaml")
    listed = set(kustomization["resources"])
    assert listed == {path.name for path in DEPLOY.glob("*.yaml")} - {"kustomization.yaml", "migrate.yaml"}
    namespaces = {found["metadata"]["name"] for found in of_kind("Namespace")}
    others = {found["metadata"]["namespace"] for found in documents() if "namespace" in found.get("metadata", {})}
    assert others - namespaces == {"production", "argocd", SEALING}  # those that are there already


def test_every_role_has_one_deployment_with_its_own_login() -> None:
    fields = {f"DRBOT_{name.upper()}" for name in Settings.model_fields}
    roles = {}
    for found, pod in pod_specs():
        [container] = pod["containers"]
        words = container["args"]
        if words[0] == "run":
            assert words[1] == "--role"
            roles[Role(words[2])] = found["metadata"]["namespace"]
            assert f"drbot-{words[2]}" in [one["secretRef"]["name"] for one in container["envFrom"]]
        names = {one["name"] for one in container["env"] if one["name"].startswith("DRBOT_")}
        assert names <= fields
        values = {one["name"]: one["value"] for one in container["env"]}
        assert values.get("DRBOT_EXECUTOR", "subprocess") in set(ExecutorKind)
    assert set(roles) == set(TOGETHER)
    # Whoever makes Jobs in a namespace can mount every Secret of it.
    assert roles[Role.WORKER] not in (roles[Role.SLACK], roles[Role.CLOCK])


def test_every_server_with_wal_has_one_archiver_with_a_disk_of_its_own(plan: DrPlan) -> None:
    wanted = {item.database for item in plan.backups.databases if item.wal is not None}
    found = [
        one for one in of_kind("StatefulSet") if one["spec"]["template"]["spec"]["containers"][0]["args"][0] == "wal"
    ]
    assert {one["spec"]["template"]["spec"]["containers"][0]["args"][1] for one in found} == wanted
    for one in found:
        assert one["spec"]["replicas"] == 1
        assert one["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]
        database = one["spec"]["template"]["spec"]["containers"][0]["args"][1]
        assert one["spec"]["template"]["metadata"]["labels"]["server"] == plan.database(database).server


async def test_all_pods_are_restricted(place: JobPlace) -> None:
    made = jobs.manifest(spec(), place, attempt="a", plan_digest="d")
    for found, pod in [*pod_specs(), (made, made["spec"]["template"]["spec"])]:
        name = found["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == jobs.USER
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            own = [claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])]
            assert mounted == {*own, *(volume["name"] for volume in pod["volumes"])}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"USER {jobs.USER}:{jobs.USER}" in dockerfile
    assert 'ENTRYPOINT ["drbot"]' in dockerfile


def test_no_rule_is_wider_than_a_namespace_or_has_a_star() -> None:
    assert not of_kind("ClusterRole")
    assert not of_kind("ClusterRoleBinding")
    for role in of_kind("Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if "secrets" in rule["resources"] and role["metadata"]["namespace"] == SEALING:
                # Kubernetes knows no rights by label: to find the sealing keys, the worker must list what is there.
                assert (role["metadata"]["name"], rule["verbs"]) == ("drbot-worker", ["list"])
            elif "secrets" in rule["resources"]:
                assert rule["resourceNames"]
                assert rule["verbs"] == ["get"]


def test_network_policies_name_pods_that_exist() -> None:
    labels = [
        (found["metadata"]["namespace"], found["spec"]["template"]["metadata"]["labels"]) for found, _ in pod_specs()
    ]
    labels += [("dr", {"app.kubernetes.io/name": "drbot", "app.kubernetes.io/component": own}) for own in JOBS]
    chosen = []
    for policy in of_kind("NetworkPolicy"):
        wanted = policy["spec"]["podSelector"].get("matchLabels")
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in policy["spec"]
        if wanted is not None:
            chosen.append((policy["metadata"]["namespace"], wanted))
    assert sorted(chosen, key=str) == sorted(labels, key=str)


async def test_jobs_of_the_plan_find_what_is_deployed(plan: DrPlan, place: JobPlace) -> None:
    made = jobs.manifest(spec(), place, attempt="a", plan_digest="d")["spec"]["template"]
    assert made["metadata"]["labels"]["app.kubernetes.io/component"] == "job"
    pod = made["spec"]
    accounts = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in of_kind("ServiceAccount")}
    claims = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in of_kind("PersistentVolumeClaim")}
    assert (place.namespace, pod["serviceAccountName"]) in accounts
    assert {(place.namespace, claim.name) for claim in place.claims} == claims
    [worker] = [pod for found, pod in pod_specs() if found["metadata"]["name"] == "drbot-worker"]
    assert worker["containers"][0]["image"] == place.image
    [shared] = [volume for volume in worker["volumes"] if "persistentVolumeClaim" in volume]
    assert (place.namespace, shared["persistentVolumeClaim"]["claimName"]) in claims
    for found, template in pod_specs():
        for volume in template["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] == place.plan_config_map, found["metadata"]["name"]


def test_references_of_the_plan_can_be_read_by_who_needs_them_and_by_nobody_else(plan: DrPlan) -> None:
    text = plan.model_dump_json()
    wanted = {tuple(found.split("/")[:2]) for found in re.findall(r"k8s:([^\"#]+)", text)}

    world, record, witness = ("dr", "superprismora-dr"), ("dr-front", "drbot-record"), ("dr-front", "drbot-witness")
    assert wanted == {world, PROVER, record, witness}
    assert readable("drbot-worker") == {world, witness}
    assert readable("drbot-clock") == {record, witness}
    assert readable("drbot-job") == {world}
    assert readable("drbot-prover") == {PROVER}
    assert readable("drbot-wal") == {world}
    assert readable("drbot-slack") == set()


# ---------------------------------------------------------------- rights, as they are used


async def test_worker_has_the_rights_that_jobs_need_and_no_more(kubernetes_world: ExecutorWorld) -> None:
    world = kubernetes_world
    assert world.cluster is not None
    world.cluster.seen.clear()
    port = world.port
    await port.problems()
    await port.start(spec())
    await until(begun(world), within=60)
    await port.cancel("job-1")
    await port.forget("job-1")
    world.release()
    await port.start(spec("job-2", "large"))
    await port.wait("job-2", no_progress)
    secrets = {("", "secrets", "get")}  # by references, not by the executor
    assert used(world.cluster.seen, "production") == granted("dr") - secrets


async def test_worker_has_the_rights_that_workloads_need_and_no_more(server_directory: Path) -> None:
    async with ClusterStandIn(server_directory) as stand_in:
        refs = [WorkloadRef("here", "production", kind, kind.value.lower()) for kind in WorkloadKind]
        argo = {"app.kubernetes.io/instance": "shop"}
        flux = {
            f"{group}/{key}": value
            for group in ("kustomize.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io")
            for key, value in (("name", "shop"), ("namespace", "production"))
        }
        by_helm = {key: value for key, value in flux.items() if key.startswith("helm")}
        by_kustomize = {key: value for key, value in flux.items() if key.startswith("kustomize")}
        own = {"argocd.argoproj.io/tracking-id": "production_own:apps/Deployment:production/own"}
        tracked = WorkloadRef("here", "production", WorkloadKind.DEPLOYMENT, "own")
        body = manifest(tracked, replicas=1)
        body["metadata"]["annotations"] = own
        labels = dict(zip(refs, (argo, by_helm, by_kustomize), strict=True))
        stand_in.apply(body, *(manifest(ref, replicas=1, labels=labels[ref]) for ref in refs), *controllers())
        access = ClusterAccess(name="here", kubeconfig=f"file:{stand_in.kubeconfig}")
        cluster = KubernetesCluster(Site(clusters={"here": access}), SecretReferences({}))
        stand_in.seen.clear()
        await cluster.overview("here", "production")
        for ref in [*refs, tracked]:
            await cluster.workload(ref)
            await cluster.suspend_gitops(ref, mark="p")
            await cluster.stop(ref, mark="p")
            await cluster.rollout(ref)
            await cluster.give_back(ref, mark="p")
            await cluster.scale(ref, 1)
            if ref.kind is not WorkloadKind.CRON_JOB:
                await cluster.restart(ref, mark="p")
            await asyncio.sleep(0.5)
            await cluster.logs(ref)
            await cluster.resume_gitops(ref, mark="p")
        name = "superprismora-config"
        await cluster.config("here", "production", name)
        await cluster.set_config("here", "production", name, key="DATABASE_HOST", before="a", after="b")
        cluster.close()
        assert used(stand_in.seen, "production") == granted("production")
        assert used(stand_in.seen, "argocd") == granted("argocd")
        assert {use.namespace for use in stand_in.seen} == {"production", "argocd"}


async def test_worker_may_list_the_sealing_keys_and_no_more(server_directory: Path) -> None:
    async with ClusterStandIn(server_directory, custom_resources=False) as stand_in:
        access = ClusterAccess(name="here", kubeconfig=f"file:{stand_in.kubeconfig}", sealed_secrets="sealed-secrets")
        sealing = ClusterSealingKeys(Site(clusters={"here": access}), SecretReferences({}))
        stand_in.seen.clear()
        await sealing.keys("here")
        await sealing.export("here")
        sealing.close()
        assert used(stand_in.seen, "sealed-secrets") == granted("sealed-secrets")
        assert {use.namespace for use in stand_in.seen} == {"sealed-secrets"}


async def test_worker_needs_for_sealed_secrets_what_is_offered_as_comments_and_no_more(server_directory: Path) -> None:
    async with ClusterStandIn(server_directory, custom_resources=False) as stand_in:
        stand_in.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "production"}})
        metadata = {"name": "mail", "namespace": "production"}
        stand_in.apply({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": {}})
        access = ClusterAccess(name="here", kubeconfig=f"file:{stand_in.kubeconfig}")
        site, references = Site(clusters={"here": access}), SecretReferences({})
        secrets, live = ClusterSecrets(site, references), ClusterObjects(site, references)
        stand_in.seen.clear()
        await live.read("here", (SECRET, SEALED_SECRET), ["production"])
        await secrets.may_write("here", "production")
        [item] = await secrets.read("here", ["production"])
        version = f"{item['metadata']['resourceVersion']} of {item['metadata']['uid']}"
        await secrets.write("here", {**item, "data": {"key": "bmV3"}}, over=version)
        secrets.close()
        live.close()
        # The stand-in has no SealedSecrets, so nobody lists them.
        assert used(stand_in.seen, "production") | {("bitnami.com", "sealedsecrets", "list")} == offered(
            "production.yaml"
        )


def controllers() -> list[Json]:
    automated = {"project": "default", "syncPolicy": {"automated": {"selfHeal": True}}}
    flux = {"name": "shop", "namespace": "production"}
    return [
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": namespace},
            "spec": automated,
        }
        for name, namespace in (("shop", "argocd"), ("own", "production"))
    ] + [
        {
            "apiVersion": "helm.toolkit.fluxcd.io/v2",
            "kind": "HelmRelease",
            "metadata": flux,
            "spec": {"interval": "1m"},
        },
        {
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": flux,
            "spec": {"interval": "1m"},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "superprismora-config", "namespace": "production"},
            "data": {"DATABASE_HOST": "a"},
        },
    ]


@pytest.mark.parametrize("kind", list(JobKind))
async def test_only_jobs_that_open_dumps_see_the_identity(place: JobPlace, kind: JobKind) -> None:
    made = jobs.manifest(JobSpec(name="j", kind=kind, request={}), place, attempt="a", plan_digest="d")
    secrets = files_of(made["spec"]["template"]["spec"])
    physical = (JobKind.BASE_VERIFY, JobKind.SCRATCH, JobKind.FIND)
    opens = kind in (JobKind.LOAD, JobKind.VERIFY, JobKind.ADOPT, *physical)
    tests = {"drbot-prover-identity"} if kind is JobKind.PROVE else set()
    assert secrets == ({"drbot-age-identity"} if opens else tests)


async def test_a_restore_test_sees_its_identity_and_keys_that_read_and_nothing_else(
    plan: DrPlan, place: JobPlace
) -> None:
    prove = JobSpec(name="j", kind=JobKind.PROVE, request={})
    pod = jobs.manifest(prove, place, attempt="a", plan_digest="d")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "drbot-prover"
    assert readable("drbot-prover") == {PROVER}
    assert granted("dr", "drbot-prover") == {("", "secrets", "get")}
    assert files_of(pod) == {"drbot-prover-identity"}
    [container] = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "drbot-addresses"}}]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {jobs.ORDER, jobs.PLAN, jobs.SCRATCH, jobs.DATA, "/run/drbot/prover"}

    # What it resolves on its way: the keys of the buckets with base backups and WAL, and the identity.
    site = await site_of(plan, Blank())
    assert site.jobs == place
    proving = site.as_prover()
    for policy in proving.physical.values():
        assert policy.identity == "file:/run/drbot/prover/age-identity"
        for name in {policy.bucket, *policy.wal_buckets, policy.open_bucket} - {""}:
            bucket = proving.buckets[name]
            for key in (bucket.access_key, bucket.secret_key):
                assert key.startswith("k8s:{}/{}/".format(*PROVER)), name
            assert site.buckets[name].access_key != bucket.access_key


def files_of(pod: Json) -> set[str]:
    """The Secrets that are folders of it."""
    return {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}


@pytest.mark.parametrize(
    ("kind", "secret"), [(JobKind.PROVE, "superprismora-prover"), (JobKind.SCRATCH, "superprismora-dr")]
)
async def test_the_job_of_a_restore_test_reads_the_bucket_with_its_own_key(
    plan: DrPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: JobKind, secret: str
) -> None:
    for name in re.findall(r'"env:([A-Z_]+)"', plan.model_dump_json()):
        monkeypatch.setenv(name, Keys().recipient if "RECIPIENT" in name else "http://127.0.0.1:9")
    asked = ScratchRequest(id="s1", server="primary", target=RecoveryTarget(latest=True)).model_dump(mode="json")
    file = tmp_path / "spec.json"
    file.write_text(JobSpec(name="j", kind=kind, request=asked).model_dump_json())
    settings = Settings(plan_file=ROOT / "dr-plan.yml", data_directory=tmp_path / "data")
    assert await job_world.job(settings, file) == 1
    state = JobState.model_validate_json((tmp_path / "result.json").read_text())
    # Outside a cluster nobody resolves it: its name tells which one was wanted first.
    assert f"`k8s:dr/{secret}/backup-access-key` can be read only by a process inside the cluster" in state.error
