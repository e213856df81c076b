"""Image names, and the local environment that each stands for. Nothing is ever pulled."""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The reference grammar of the distribution specification: [host[:port]/]path[:tag][@digest]
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]+)?"
REFERENCE = re.compile(
    rf"^(?P<name>(?:{HOST}/)?{COMPONENT}(?:/{COMPONENT})*)(?::(?P<tag>[\w][\w.-]{{0,127}}))?(?:@sha256:[0-9a-f]{{64}})?$"
)


@dataclass(frozen=True)
class Image:
    """What a container of this image starts with; `command` is its entry point, `arguments` its default arguments."""

    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    path: str = DEFAULT_PATH
    user: int = 0
    working_dir: str = "/"
    folders: tuple[str, ...] = ()
    """Folders of this machine that its containers see, wherever they lie."""


def default_images() -> dict[str, Image]:
    """The images that every devcluster has: the operator and the trainer from this repository, and a plain shell."""
    bin_folder = Path(sys.prefix) / "bin"
    path = f"{bin_folder}:{DEFAULT_PATH}"
    python = str(bin_folder / "python")
    allow_cpu = {"TRAINYARD_ALLOW_CPU": "1"}
    return {
        "trainyard/operator": Image((python, "-m", "trainyard_operator"), path=path, user=65532),
        "trainyard/trainer": Image((python, "-m", "trainyard_trainer"), path=path, env=allow_cpu, user=65532),
        "local/shell": Image(arguments=("/bin/sh",)),
        "local/python": Image(arguments=(python,), path=path),
    }


def load_images(path: Path | None) -> dict[str, Image]:
    """The default images and those of the JSON file: `{name: {rootfs: host, command, args, env, path, user, folders}}`."""
    images = default_images()
    if path is None:
        return images
    for name, entry in json.loads(path.read_text("utf-8")).items():
        if entry.get("rootfs", "host") != "host":
            raise ValueError(f'{path}: image "{name}": rootfs must be "host", the node knows no other')
        images[name] = Image(
            tuple(entry.get("command", ())),
            tuple(entry.get("args", ())),
            dict(entry.get("env", {})),
            entry.get("path", DEFAULT_PATH),
            int(entry.get("user", 0)),
            entry.get("workingDir", "/"),
            tuple(entry.get("folders", ())),
        )
    return images


def parse_error(name: str) -> str | None:
    """Why `name` is no image reference, in the container runtime's words; None when it is one."""
    if REFERENCE.match(name):
        return None
    why = "invalid reference format"
    repository = re.sub(r":+[^/:]*$", "", name)
    _, slash, rest = repository.partition("/")
    if slash and re.search(r"[A-Z]", rest):
        why += f": repository name ({rest}) must be lowercase"
    return f'Failed to apply default image tag "{name}": couldn\'t parse image name "{name}": {why}'


def find(images: dict[str, Image], name: str) -> Image | None:
    """The environment for an image name: the exact name, else the name without tag and digest, else None."""
    plain = name.removeprefix("docker.io/").removeprefix("library/")
    for candidate in (name, plain, plain.partition("@")[0]):
        if candidate in images:
            return images[candidate]
    match = REFERENCE.match(plain)
    return images.get(match["name"]) if match else None


def source_folders(image: Image, hidden: tuple[str, ...]) -> list[Path]:
    """Folders that the image needs and that lie below one of `hidden`, where a container would not see them."""
    folders = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *map(Path, image.folders)}
    return sorted(f for f in folders if any(f.is_relative_to(h) for h in hidden))


def pull_error(name: str) -> str:
    """What the runtime says when an image that is not here would have to be pulled."""
    return (
        f'failed to pull and unpack image "{name}": failed to resolve image: this node pulls no images; '
        f"it knows only those of its image map"
    )
