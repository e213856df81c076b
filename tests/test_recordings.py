"""The recordings are complete, and read back whole."""

from tests.recordings import load, scenarios


def test_all_sixty_seven_recordings_are_there():
    assert len(scenarios()) == 67


def test_every_line_reads_back_as_a_whole_object():
    for name in scenarios():
        recording = load(name)
        for line in recording.lines("Pod"):
            assert line.object["spec"]["containers"], name
            assert line.object["metadata"]["labels"], name
        for line in recording.lines("Job"):
            assert "backoffLimit" in line.object["spec"], name


def test_a_pod_deleted_by_a_user_keeps_its_exit_code_and_message_to_the_end():
    pods = load("12").lines("Pod")
    assert pods[-1].type == "DELETED"
    terminated = pods[-1].object["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["message"]) == (75, '{"reason":"drained"}\n')
    assert "deletionTimestamp" not in pods[0].object["metadata"]
