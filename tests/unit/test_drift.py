"""What counts as drift, and what is only the server's or a controller's way of keeping an object."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest

from actions.drift import compare, kinds_of, namespaces_of
from actions.manifest_files import Known, images_of, read
from actions.manifests import KindName, Live, RepositoryFile, What

APP: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "api", "namespace": "shop", "labels": {"app": "api"}},
    "spec": {
        "replicas": 3,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "app",
                        "image": "app:1",
                        "env": [{"name": "MODE", "value": "live"}, {"name": "DB_PASSWORD", "value": "canary-one"}],
                        "resources": {"limits": {"cpu": "0.5", "memory": "1Gi"}},
                    }
                ]
            }
        },
    },
}


def live_of(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As a server keeps it: defaults filled in, quantities its own way, status and owners added."""
    copy = {**base, "metadata": {**base["metadata"], "uid": "1", "resourceVersion": "7", "managedFields": [{}]}}
    copy["status"] = {"replicas": 3}
    return {**copy, **changes}


def container(**changes: Any) -> dict[str, Any]:
    one = APP["spec"]["template"]["spec"]["containers"][0]
    kept = {**one, "imagePullPolicy": "IfNotPresent", "resources": {"limits": {"cpu": "500m", "memory": "1024Mi"}}}
    return {**kept, **changes}


def spec(*containers: dict[str, Any], replicas: int = 3) -> dict[str, Any]:
    return {"replicas": replicas, "strategy": {}, "template": {"spec": {"containers": list(containers)}}}


def test_what_the_server_fills_in_is_no_drift() -> None:
    found = live_of(APP, spec=spec(container()))

    assert compare([APP], Live(objects=(found,)), namespace="default").entries == ()


def test_a_changed_field_an_added_variable_and_a_missing_object_are_named() -> None:
    env = [
        {"name": "MODE", "value": "test"},
        {"name": "DB_PASSWORD", "value": "canary-two"},
        {"name": "X", "value": "1"},
    ]
    found = live_of(APP, spec=spec(container(env=env)))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}}

    entries = compare([APP, other], Live(objects=(found,)), namespace="default").entries

    at = "spec.template.spec.containers[app].env"
    told = {(entry.what, entry.path): (entry.wanted, entry.found) for entry in entries}
    assert told[What.CHANGED, f"{at}[MODE].value"] == ("live", "test")
    assert told[What.CHANGED, f"{at}[X]"][0] == "nothing"
    assert (What.MISSING, "") in told
    assert told[What.CHANGED, f"{at}[DB_PASSWORD].value"] == ("(hidden)", "(hidden)")
    assert "canary" not in repr(entries)


def test_replicas_under_an_autoscaler_and_what_the_bot_stopped_are_left_out_and_said() -> None:
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "api"}},
    }
    scaled = live_of(APP, spec=spec(container(), replicas=9))
    assert compare([APP], Live(objects=(scaled, scaler)), namespace="default").entries == ()

    stopped = live_of(APP, spec=spec(container(), replicas=0))
    stopped["metadata"]["annotations"] = {"dr.superprismora.com/stopped-by": "plan"}
    found = compare([APP], Live(objects=(stopped,)), namespace="default")
    assert found.entries == ()
    assert "held by the bot" in found.notes[0]

    by_hand = live_of(APP, spec=spec(container(), replicas=9))
    [entry] = compare([APP], Live(objects=(by_hand,)), namespace="default").entries
    assert (entry.path, entry.wanted, entry.found) == ("spec.replicas", "3", "9")


def test_extra_objects_are_listed_but_not_those_that_others_made() -> None:
    owned = live_of(APP, metadata={"name": "made", "namespace": "shop", "ownerReferences": [{"kind": "Shop"}]})
    foreign = live_of(APP, metadata={"name": "debug", "namespace": "shop"})
    elsewhere = live_of(APP, metadata={"name": "debug", "namespace": "other"})
    found = compare(
        [APP], Live(objects=(live_of(APP, spec=spec(container())), owned, foreign, elsewhere)), namespace="x"
    )

    assert [(entry.what, entry.object) for entry in found.entries] == [(What.EXTRA, "Deployment shop/debug")]


def test_a_secret_is_compared_by_hashes_and_never_shown() -> None:
    text = 'apiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: shop}\nstringData: {password: "canary-one"}\n'
    [wanted] = read([RepositoryFile("s.yaml", text.encode())]).objects
    same = "apiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: shop}\ndata: {password: Y2FuYXJ5LW9uZQ==}\n"
    [found] = read([RepositoryFile("s.yaml", same.encode())]).objects
    other = same.replace("Y2FuYXJ5LW9uZQ==", "Y2FuYXJ5LXR3bw==")
    [changed] = read([RepositoryFile("s.yaml", other.encode())]).objects

    assert "canary" not in repr((wanted, found))
    assert compare([wanted], Live(objects=(found,)), namespace="x").entries == ()
    [entry] = compare([wanted], Live(objects=(changed,)), namespace="x").entries
    assert (entry.path, entry.wanted, entry.found) == ("data.password", "(hidden)", "(hidden)")


def test_a_kind_that_cannot_be_listed_is_said_and_not_called_missing() -> None:
    refused = Live(refused=((KindName("apps/v1", "Deployment"), "no right to it"),))

    found = compare([APP], refused, namespace="default")

    assert found.entries == ()
    assert found.unknown == ("Deployment: no right to it",)


# ---------------------------------------------------------------- files


def test_yaml_is_read_as_kubernetes_reads_it() -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
    text += "spec: {mode: 0644, on: yes, at: 12:30, day: 2026-01-02, odds: 1_0.5, late: 12:30.5, least: -.inf}\n"

    [first, second] = read([RepositoryFile("a.yaml", f"{text}---\n{text}".encode())]).objects

    assert first["spec"] == {"mode": 0o644, "true": True, "at": "12:30", "day": "2026-01-02"} | {
        "odds": 10.5,
        "late": "12:30.5",
        "least": -math.inf,
    }
    assert second == first


def test_a_value_that_looks_like_a_number_is_quoted_in_no_warning() -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: shop}\nstringData: {pin: 5e77}\n"

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        [secret] = read([RepositoryFile("s.yaml", text.encode())]).objects

    assert not said
    assert "5e77" not in repr(secret)


def test_what_is_made_by_others_is_named_and_not_guessed() -> None:
    app = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
    files = [
        RepositoryFile("chart/Chart.yaml", b"name: x\n"),
        RepositoryFile("chart/templates/app.yaml", b"name: {{ .Values.x }}\n"),
        RepositoryFile("over/kustomization.yaml", b"resources: []\n"),
        RepositoryFile("over/app.yaml", app),
        RepositoryFile("plain/app.yaml", app),
        RepositoryFile("plain/values.yaml", b"a: 1\n"),
        RepositoryFile("plain/broken.yaml", b"a: [1\n"),
        RepositoryFile("plain/link.yaml", None, "is a symbolic link"),
    ]

    tree = read(files)

    assert len(tree.objects) == 1
    told = " ".join(tree.not_understood)
    for word in (
        "`chart` is made by Helm",
        "`over` is made by Kustomize",
        "values.yaml",
        "broken.yaml",
        "symbolic link",
    ):
        assert word in told
    assert "templates" not in told


@pytest.mark.timeout(20)
def test_anchors_that_grow_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]

    tree = read([RepositoryFile("bomb.yaml", "\n".join(lines).encode())])

    assert tree.objects == ()
    assert "cannot be read" in tree.not_understood[0]


def test_images_kinds_and_namespaces_of_manifests() -> None:
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "nightly"},
        "spec": {
            "jobTemplate": {"spec": {"template": {"spec": {"initContainers": [{"name": "a", "image": "tool:2"}]}}}}
        },
    }

    assert images_of([APP, job]) == ("app:1", "tool:2")
    assert namespaces_of([APP, job], "default") == ("default", "shop")
    assert KindName("autoscaling/v2", "HorizontalPodAutoscaler") in kinds_of([APP])


def test_a_file_that_is_known_is_the_same_again_whatever_was_done_with_what_it_gave() -> None:
    known = Known(limit=300)
    secret = b"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: canary-two}\n"
    (first,), problem = known.objects(secret)
    wanted = dict(first)
    first["metadata"] = first["data"] = {}

    assert known.objects(secret) == ([wanted], problem)
    assert problem == ""
    assert known.objects(secret + b"---\n[]") == ([wanted], "holds something that is no Kubernetes object")
    assert "canary-two" not in repr(vars(known))


def test_files_are_kept_up_to_a_size() -> None:
    known = Known(limit=300)
    for number in range(9):
        known.objects(b"# %d" % number + bytes(97).replace(b"\0", b"-"))

    assert len(known._made) == 3
    assert known._bytes == 300
