import pytest

from mca_perception.ros.node_descriptions import NodeDescription
from mca_perception.ros.respawns import MAX_RESPAWNS, RESPAWN_WINDOW_S, Respawns

NODE = NodeDescription("perception_node", "/perception", "perception", respawn=True)


@pytest.mark.parametrize(("code", "allowed"), [(-9, True), (-11, True), (0, False), (1, False), (2, False)])
def test_only_signals_are_crashes(code: int, allowed: bool) -> None:
    assert Respawns(NODE).allow(code) is allowed


def test_nodes_that_may_not_are_not_started_again() -> None:
    assert not Respawns(NodeDescription("source_node", "/perception", "source")).allow(-9)


def test_a_node_that_keeps_crashing_is_given_up_until_the_window_has_passed() -> None:
    now = 0.0
    respawns = Respawns(NODE, clock=lambda: now)
    assert [respawns.allow(-9) for _ in range(MAX_RESPAWNS + 1)] == [True] * MAX_RESPAWNS + [False]
    now = RESPAWN_WINDOW_S
    assert respawns.allow(-9)
