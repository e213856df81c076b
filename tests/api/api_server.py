"""A plain client of the API server for custom resources, and the smallest manifests to begin from."""

import json
from typing import Any

from kubernetes import client
from trainyard_api import API_VERSION, GROUP, VERSION
from trainyard_api.crd import KINDS

Manifest = dict[str, Any]

PLURALS = {kind.name: kind.plural for kind in KINDS}


BASE: dict[str, Manifest] = {
    "TrainingJob": {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
        "output": {"uri": "s3://vision/models"},
    },
    "TrainingService": {"architecture": "yard-nano"},
    "TrainingBudget": {"trainingMinutes": 600},
    "ModelVersion": {
        "model": "cells",
        "version": 3,
        "jobName": "blood-cells",
        "jobUID": "6b1f3c1e-1111-2222-3333-444455556666",
        "architecture": "yard-nano",
        "task": "Detection",
        "uri": "s3://vision/models/cells/v3/",
    },
}
NAMES = {
    "TrainingJob": "blood-cells",
    "TrainingService": "mgmt-train-yard-nano",
    "TrainingBudget": "team",
    "ModelVersion": "cells-v3",
}


def merged(base: Manifest, patch: Manifest) -> Manifest:
    """The base with what the patch says; `...` removes a field, lists are taken as they are."""
    result = dict(base)
    for name, value in patch.items():
        if value is ...:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name, {}), dict):
            result[name] = merged(result.get(name, {}), value)
        else:
            result[name] = value
    return result


def manifest(kind: str, patch: Manifest | None = None, name: str | None = None) -> Manifest:
    """The smallest manifest of the kind with what `patch` changes in its spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name or NAMES[kind]},
        "spec": merged(BASE[kind], patch or {}),
    }


class Refused(Exception):
    """The API server's answer to a manifest that it does not take."""

    def __init__(self, error: client.ApiException) -> None:
        super().__init__(json.loads(error.body or "{}").get("message", error.reason))
        self.code = error.status


class Api:
    """Custom resources of one namespace by kind, with strict field validation as kubectl has it."""

    def __init__(self, connection: client.ApiClient, namespace: str) -> None:
        self._objects = client.CustomObjectsApi(connection)
        self.namespace = namespace

    def create(self, manifest: Manifest, dry_run: bool = False) -> Manifest:
        """The object as the server takes it, defaults filled in; a dry run keeps nothing. Raises `Refused`."""
        try:
            return self._objects.create_namespaced_custom_object(  # pyright: ignore[reportReturnType]
                GROUP,
                VERSION,
                self.namespace,
                PLURALS[manifest["kind"]],
                manifest,
                field_validation="Strict",
                dry_run="All" if dry_run else None,
            )
        except client.ApiException as error:
            raise Refused(error) from error

    def patch(
        self, kind: str, name: str, patch: Manifest | list[Manifest], *, status: bool = False, dry_run: bool = False
    ) -> Manifest:
        """The object after a merge patch (a dict) or a JSON patch (a list). Raises `Refused`."""
        objects = self._objects
        send = objects.patch_namespaced_custom_object_status if status else objects.patch_namespaced_custom_object
        form = "application/merge-patch+json" if isinstance(patch, dict) else "application/json-patch+json"
        try:
            return send(  # pyright: ignore[reportReturnType]
                GROUP,
                VERSION,
                self.namespace,
                PLURALS[kind],
                name,
                patch,
                field_validation="Strict",
                dry_run="All" if dry_run else None,
                _content_type=form,
            )
        except client.ApiException as error:
            raise Refused(error) from error

    def names(self, kind: str, field_selector: str) -> list[str]:
        """Names of the objects that the selector finds."""
        found: Any = self._objects.list_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURALS[kind], field_selector=field_selector
        )
        return sorted(item["metadata"]["name"] for item in found["items"])
