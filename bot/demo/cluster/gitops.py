"""Stand-ins for the controllers of Argo CD and Flux: they revert drift, which is why the bot suspends them first.

What stands in git is a JSON list of manifests in the annotation `demo.superprismora.com/git` of the custom object.
An Application reverts while `spec.syncPolicy.automated.selfHeal` is set, a Kustomization or HelmRelease unless
`spec.suspend` is. A field that git does not name is left alone.
"""

import contextlib
import json
from typing import Any

from bot.demo.cluster import kinds as k
from bot.demo.cluster import ownership
from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.kinds import Kind
from bot.demo.cluster.objects import Objects, timestamp
from bot.demo.cluster.workloads import set_status

Json = dict[str, Any]

GIT = "demo.superprismora.com/git"


class GitOpsControllers:
    """One pass compares everything with git, and reverts what is not suspended."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def reconcile(self) -> None:
        for kind in k.GITOPS:
            for found in self._objects.all(kind):
                with contextlib.suppress(RefusedError):  # its namespace is going
                    self._one(kind, found)

    def _one(self, kind: Kind, found: Json) -> None:
        wanted = json.loads((found["metadata"].get("annotations") or {}).get(GIT, "[]"))
        drifted = [manifest for manifest in wanted if self._drifted(manifest)]
        if drifted and self._acts(kind, found):
            for manifest in drifted:
                self._revert(kind, manifest)
            drifted = []
        if kind is k.APPLICATION:
            status = {
                "sync": {"status": "OutOfSync" if drifted else "Synced"},
                "resources": [
                    {"kind": one["kind"], "name": one["metadata"]["name"], "namespace": one["metadata"]["namespace"]}
                    for one in wanted
                ],
            }
            set_status(self._objects, kind, found, status)

    def _acts(self, kind: Kind, found: Json) -> bool:
        spec = found.get("spec") or {}
        if kind is not k.APPLICATION:
            return not spec.get("suspend")
        automated = (spec.get("syncPolicy") or {}).get("automated") or {}
        return bool(automated.get("selfHeal")) and automated.get("enabled") is not False

    def _drifted(self, manifest: Json) -> bool:
        live = self._live(manifest)
        if live is None:
            return True
        present = ownership.fields(live)
        return any(present.get(path) != value for path, value in ownership.fields(manifest).items())

    def _live(self, manifest: Json) -> Json | None:
        kind = self._objects.kinds.by_name(manifest["apiVersion"], manifest["kind"])
        metadata = manifest["metadata"]
        return self._objects.find(kind, metadata.get("namespace", ""), metadata["name"]) if kind else None

    def _revert(self, kind: Kind, manifest: Json) -> None:
        target = self._objects.kinds.by_name(manifest["apiVersion"], manifest["kind"])
        if target is None:
            return
        who = "argocd-controller" if kind is k.APPLICATION else "flux-controller"
        live = self._live(manifest)
        if live is None:
            self._objects.create(target, manifest["metadata"].get("namespace", ""), manifest, manager=who)
            return
        found, owners = ownership.applied(live, manifest, who, force=True)
        ownership.record(found, owners, timestamp())
        self._objects.replace(target, live["metadata"].get("namespace", ""), found, manager=who)
