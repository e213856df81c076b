"""What the trainer cannot do is said before anything is downloaded."""

from typing import Any

import pytest
from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_api.run import RunSpec
from trainyard_trainer.attempt import check_spec
from trainyard_trainer.errors import BadSpec


def spec(**fields: Any) -> RunSpec:
    base = {
        "job": "cells",
        "namespace": "vision",
        "uid": "0123456789",
        "architecture": "yard-nano",
        "task": "Detection",
        "model": "cells",
        "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
        "outputURI": "s3://vision/models",
    }
    return RunSpec.model_validate(base | fields)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "yolo"])
def test_an_architecture_that_this_image_lacks_is_never_trained_as_another(name: str) -> None:
    known = ARCHITECTURES.get(name)
    wanted = spec(architecture=name, task=known.task if known else Task.DETECTION)
    if known:
        assert check_spec(wanted) == (known.image_size, known.image_size)
    else:
        with pytest.raises(BadSpec, match=f"does not have the architecture '{name}'; it has yard-nano"):
            check_spec(wanted)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "Tagging"}, "yard-nano cannot do Tagging; set task to Detection"),
    ],
)
def test_what_cannot_be_is_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadSpec, match=sentence):
        check_spec(spec(**fields))
