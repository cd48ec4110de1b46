"""The application in the demo's cluster: what `kubectl apply` would be given."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from bot.demo.cluster.containers import COMMAND
from bot.demo.cluster.kubelet import READY_URL
from bot.demo.cluster.services import LISTEN
from bot.demo.dataset import APPLICATION, DATABASE
from bot.demo.plan import API, CLOSE_DAY, CONFIG_MAP, NAMESPACE, WORKER

Json = dict[str, Any]

SECRET = "superprismora-database"  # noqa: S105 - its name
REPLICAS = 2


def manifests(*, database_host: str, password: str, port: int) -> Sequence[Json]:
    """`database_host` is host:port of production, `port` the fixed one of the service on 127.0.0.1."""
    ready = {READY_URL: "http://127.0.0.1:{port}/readyz"}
    return (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE},
            "data": {"DATABASE_HOST": database_host, "DATABASE_NAME": DATABASE, "DATABASE_USER": APPLICATION},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE},
            "stringData": {"DATABASE_PASSWORD": password},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": API, "namespace": NAMESPACE, "annotations": {LISTEN: str(port)}},
            "spec": {"selector": {"app": API}, "ports": [{"port": 80}]},
        },
        _deployment(API, REPLICAS, {**ready, **_command("webapp", "--port", "{port}")}),
        _deployment(WORKER, 1, _command("shop", "work")),
        _cron_job(),
    )


def _deployment(name: str, replicas: int, annotations: Json) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"terminationGracePeriodSeconds": 5, "containers": [_container(name)]},
            },
        },
    }


def _cron_job() -> Json:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": CLOSE_DAY, "namespace": NAMESPACE},
        "spec": {
            "schedule": "*/5 * * * *",
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 1,
                    "template": {
                        "metadata": {"labels": {"app": CLOSE_DAY}, "annotations": _command("shop", "close-day")},
                        "spec": {"restartPolicy": "Never", "containers": [_container(CLOSE_DAY)]},
                    },
                }
            },
        },
    }


def _container(name: str) -> Json:
    return {
        "name": name,
        "image": "registry.superprismora.example/superprismora:1.4.2",
        "envFrom": [{"configMapRef": {"name": CONFIG_MAP}}, {"secretRef": {"name": SECRET}}],
    }


def _command(module: str, *words: str) -> Json:
    return {COMMAND: json.dumps([sys.executable, "-m", f"bot.demo.{module}", *words])}
