"""What the chart tells the operator: environment variables `TRAINYARD_…`, over a YAML file, over defaults that work."""

import os
import socket
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as PydanticSettingsError

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _own_namespace() -> str:
    """The pod's namespace; outside a cluster the chart's usual one."""
    try:
        return _NAMESPACE_FILE.read_text().strip() or "trainyard-system"
    except OSError:
        return "trainyard-system"


SETTINGS_FILE = "TRAINYARD_SETTINGS_FILE"


class SettingsError(Exception):
    """The settings cannot be used; the text says which and what to write."""


class Settings(BaseSettings):
    """Durations are seconds. Lists and objects are given as JSON, in the file as YAML."""

    model_config = SettingsConfigDict(env_prefix="TRAINYARD_", env_parse_none_str="null", frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file that TRAINYARD_SETTINGS_FILE names."""
        file = InitSettingsSource(settings_cls, init_kwargs=_from_file(os.environ.get(SETTINGS_FILE), settings_cls))
        return init_settings, env_settings, file

    namespace: str = Field(default_factory=_own_namespace)
    """Where the operator lives: its Lease and its intake's Secret."""
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces to serve, separated by commas; empty: the whole cluster."""
    identity: str = Field(default_factory=socket.gethostname)
    """Name of this replica in the Lease: the pod's name. Two live processes must never share it."""
    watch_nodes: bool = True
    """Whether the operator may read nodes; without them a lost node shows only by its pod's overdue deletion."""

    lease_name: str = "trainyard-operator"
    lease_seconds: Annotated[float, Field(ge=1)] = 15.0
    """A leader that has not renewed for this long is replaced."""

    workers: Annotated[int, Field(ge=1, le=64)] = 8
    resync_seconds: Annotated[float, Field(ge=1)] = 600.0
    watch_server_seconds: Annotated[int, Field(ge=5)] = 240
    """How long the API server keeps a watch open before it is renewed; also how fresh a live watch must be."""
    watch_inactivity_seconds: Annotated[float, Field(ge=5)] = 75.0
    """A watch that is silent for this long is opened again; the API server sends a bookmark every minute."""
    request_seconds: Annotated[float, Field(ge=1)] = 30.0

    probe_host: str = "0.0.0.0"  # noqa: S104 probes come from the node
    probe_port: int = 8080
    """`/healthz`, `/readyz` and `/metrics`, plain HTTP."""

    intake_host: str = "0.0.0.0"  # noqa: S104 reports come from pods
    intake_port: int = 8443
    intake_url: str = "https://trainyard-intake.trainyard-system.svc:8443"
    """Where trainers reach the intake; its host goes into the certificate."""
    intake_secret: str = "trainyard-intake-tls"  # noqa: S105 a name, not a password
    intake_certificate_dir: Path | None = None
    """`tls.crt`, `tls.key` and `ca.crt` made by someone else (cert-manager); the operator makes none then."""
    report_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Least time between two accepted reports of one pod."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Replicas that share the writes of progress."""
    progress_writes_per_second: Annotated[float, Field(gt=0)] = 50.0
    """Writes of mere progress into all jobs together; a new phase, a warning or a result is always written."""
    progress_refresh_seconds: Annotated[float, Field(ge=1)] = 30.0
    """A job whose reports arrive is written at least this often, whatever the others do."""

    trainer_image: str = "trainyard/trainer:0.1.0"
    trainer_pull_policy: str | None = None
    default_cpu: str = "2"
    default_memory: str = "8Gi"
    default_shared_memory: str = "2Gi"
    default_ephemeral_storage: str | None = None
    default_secret_names: tuple[str, ...] = ()
    """Secrets of services that the operator makes itself."""
    default_service: dict[str, Any] = Field(default_factory=dict)
    """Spec of a service that the operator makes itself, over the built-in defaults; `architecture` is added."""
    trainer_env: dict[str, str] = Field(default_factory=dict)
    """Environment of every trainer (proxies, say)."""
    preemptible_tolerations: tuple[dict[str, Any], ...] = ()
    preemptible_node_selector: dict[str, str] = Field(default_factory=dict)
    machine_types: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → `nodeSelector`, `tolerations`, `cpu`, `memory` that `machineType` stands for."""
    host_path_prefixes: tuple[str, ...] = ()
    """Folders of nodes under which `cache.hostPath` is allowed."""
    run_as_user: int | None = 10001
    """User of trainer pods; unset leaves it to the platform (OpenShift)."""
    keep_finished_seconds: Annotated[int, Field(ge=0)] = 86_400
    """Finished Jobs and their pods are kept this long, for their logs."""
    lost_node_seconds: Annotated[int, Field(ge=1)] = 300
    """An attempt on a node that does not answer is given up after this long."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @cached_property
    def intake_hostname(self) -> str:
        """Host part of `intake_url`."""
        return urlsplit(self.intake_url).hostname or "localhost"


def load_settings(**arguments: Any) -> Settings:
    """The settings of this process. Raises `SettingsError` naming each one that is wrong."""
    try:
        return Settings(**arguments)
    except ValidationError as error:
        found = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
        raise SettingsError(f"settings that cannot be used: {'; '.join(found)}") from error
    except PydanticSettingsError as error:
        raise SettingsError(f"settings that cannot be read: {error} (lists and objects are JSON)") from error


def _from_file(path: str | None, settings: type[BaseSettings]) -> dict[str, Any]:
    if not path:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} ({SETTINGS_FILE}) cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} ({SETTINGS_FILE}) has to be a mapping of settings, such as `workers: 8`")
    unknown = sorted(set(content) - set(settings.model_fields))
    if unknown:
        near = get_close_matches(unknown[0], settings.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{path} ({SETTINGS_FILE}) has settings that do not exist: {', '.join(unknown)}{hint}")
    return content
