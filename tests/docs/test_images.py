"""The two Dockerfiles, as far as they can be judged without building them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", ["operator/Dockerfile", "trainer_image/Dockerfile"])
def test_all_that_is_copied_is_there_and_reaches_the_build(file: str):
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = [line.split() for line in (ROOT / file).read_text().splitlines() if line.startswith("COPY ")]
    copied = {source for _, *sources, _ in lines for source in sources if "--from" not in " ".join(sources)}
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert {source, source.split("/")[0]} & let_in, f"{source} is kept out by .dockerignore"
