"""The retrieval node as a process, over DDS: searches, index jobs with feedback and cancel, growth, bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from action_msgs.msg import GoalStatus
from mca_perception_msgs.action import BuildIndex
from mca_perception_msgs.srv import AddImages, IndexInfo, SearchImages
from rclpy.action import ActionClient, GoalResponse
from sensor_msgs.msg import CompressedImage

from mca_perception.retrieval.store import RetrievalStore
from mca_perception.ros import qos
from mca_perception.ros.descriptions import retrieval
from mca_perception.ros.parameters import markdown_table
from mca_perception.ros.retrieval_actions import IndexAction
from mca_perception.ros.retrieval_service import RetrievalService
from tests.support import layouts
from tests.support.retrieval import WORDS, write_colour_encoder, write_colour_photos

pytestmark = pytest.mark.xdist_group("test_retrieval_node")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_colour_encoder(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the index, which does not exist yet."""
    return tmp_path_factory.mktemp("index") / "photos.store"


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], store: Path, bundle: Any) -> Any:
    return start_node("retrieval_node", namespace="/retrieval", store=str(store), model=str(bundle.path))


@pytest.fixture(scope="module")
def actions(node: Any, lasting_client: Any) -> Iterator[Any]:
    """Client of the action that gets every answer and feedback."""
    actions = ActionClient(lasting_client.node, BuildIndex, "/retrieval/index")
    lasting_client.wait(actions.server_is_ready, 60, "the action")
    lasting_client.known_to(IndexInfo, "/retrieval/index_info")
    yield actions
    actions.destroy()


def test_documentation_holds_the_generated_table(repository: Path) -> None:
    assert markdown_table("retrieval") in (repository / "docs" / "retrieval.md").read_text(encoding="utf-8")


def test_the_launch_description_names_the_node() -> None:
    (node,) = retrieval({"store": "/photos.store", "namespace": "pictures"})
    assert (node.executable, node.namespace) == ("retrieval_node", "/pictures")
    expected = {"store": "/photos.store", "model": "", "back_end": "exact", "heartbeat_s": 15.0}
    assert node.parameters == expected


def test_the_layout_shows_what_the_node_has(node: Any, client: Any, repository: Path) -> None:
    shown = layouts.names(layouts.read(repository, "retrieval"))
    client.wait(lambda: shown <= client.offered(), 60, "topics and services of the layout")


class Job:
    """One goal of the action."""

    def __init__(self, client: Any, actions: Any, **goal: Any) -> None:
        self.client, self.feedback = client, []
        sent = actions.send_goal_async(
            BuildIndex.Goal(**goal), feedback_callback=lambda m: self.feedback.append(m.feedback)
        )
        client.wait(sent.done, 30, "an answer to the goal")
        self.handle = sent.result()

    def stages(self) -> list[str]:
        return [feedback.stage for feedback in self.feedback]

    def result(self) -> tuple[int, BuildIndex.Result]:
        """Status and result. Feedback that comes after them is thrown away by rclpy."""
        done = self.handle.get_result_async()
        self.client.wait(done.done, 60, "the result")
        return done.result().status, done.result().result


def search(client: Any, text: str = "", **fields: Any) -> SearchImages.Response:
    return client.call(SearchImages, "/retrieval/search", text=text, **fields)


def test_an_index_is_built_and_searched(node: Any, client: Any, actions: Any, photos: Path) -> None:
    empty = search(client, "red")
    assert (empty.success, "does not exist" in empty.message) == (False, True)
    job = Job(client, actions, source=str(photos))
    client.wait(lambda: "entities" in job.stages(), 60, "the last feedback")
    status, result = job.result()
    assert (status, result.success, result.indexed, result.skipped) == (
        GoalStatus.STATUS_SUCCEEDED,
        True,
        18,
        1,
    )
    assert job.stages() == ["scan", "encode", "entities"]
    assert [(feedback.done, feedback.total) for feedback in job.feedback] == [(0, 0), (19, 19), (18, 18)]
    for word in WORDS:
        answer = search(client, f"a {word} picture", top_n=3)
        assert answer.success, answer.message
        assert [hit.image_id.split("/")[0] for hit in answer.hits] == [word] * 3
        assert (answer.candidate_count, answer.full_scan) == (18, True)
        assert answer.index_version == result.index_version
        assert answer.timing.total_ms > 0


def test_every_search_of_a_burst_is_answered(node: Any, client: Any) -> None:
    """More than the ten that wait by default: the others were lost without a word."""
    searches = client.node.create_client(SearchImages, "/retrieval/search", qos_profile=qos.REQUESTS)
    client.wait(searches.service_is_ready, 60, "the service")
    futures = [
        searches.call_async(SearchImages.Request(text=WORDS[i % len(WORDS)], top_n=1)) for i in range(60)
    ]
    client.wait(lambda: all(future.done() for future in futures), 60, "all answers")
    found = [future.result().hits[0].image_id.split("/")[0] for future in futures]
    assert found == [WORDS[i % len(WORDS)] for i in range(60)]
    client.node.destroy_client(searches)


def test_the_index_grows_while_it_is_searched(node: Any, client: Any, store: Path) -> None:
    before = client.call(IndexInfo, "/retrieval/index_info")
    assert (before.success, before.image_count, before.dimension) == (True, 18, 3)
    assert (before.skipped_count, before.finished, before.number_format) == (1, True, "float16")
    picture = np.full((10, 10, 3), (255, 0, 0), np.uint8)  # blue, as OpenCV writes it
    message = CompressedImage(format="png", data=cv2.imencode(".png", picture)[1].tobytes())
    answer = client.call(AddImages, "/retrieval/add_images", image_ids=["mine"], images=[message])
    assert (answer.success, answer.message, answer.image_count) == (True, "", 19)
    found = search(client, "blue", top_n=4)
    hit = next(hit for hit in found.hits if hit.image_id == "mine")
    assert Path(hit.uri).read_bytes() == bytes(message.data)
    with RetrievalStore.open(store) as opened:
        assert opened.rows_of(["mine"]) == {"mine": 18}
    again = client.call(AddImages, "/retrieval/add_images", image_ids=["mine"], images=[message])
    assert (again.success, "in the index already" in again.message) == (False, True)


def test_a_job_is_cancelled_and_resumed_and_a_second_one_refused(
    node: Any, client: Any, actions: Any, tmp_path: Path
) -> None:
    photos = write_colour_photos(tmp_path / "many", each=150, size=8)
    goal = {"source": str(photos), "index": str(tmp_path / "other.store")}
    job = Job(client, actions, **goal)
    client.wait(lambda: any(feedback.done for feedback in job.feedback), 60, "the first batch")
    assert not Job(client, actions, **goal).handle.accepted
    job.handle.cancel_goal_async()
    status, result = job.result()
    assert (status, result.success) == (GoalStatus.STATUS_CANCELED, False)
    assert 0 < result.indexed < 900
    status, refused = Job(client, actions, **goal).result()
    assert (status, "is not finished" in refused.message) == (GoalStatus.STATUS_ABORTED, True)
    status, result = Job(client, actions, **goal, resume=True).result()
    assert (status, result.indexed, result.skipped) == (GoalStatus.STATUS_SUCCEEDED, 900, 1)
    assert search(client, "red").success


def test_a_job_makes_the_index_grow_under_sixteen_searches(
    node: Any, client: Any, actions: Any, tmp_path: Path
) -> None:
    before = client.call(IndexInfo, "/retrieval/index_info").image_count
    searches = client.node.create_client(SearchImages, "/retrieval/search", qos_profile=qos.REQUESTS)
    client.wait(searches.service_is_ready, 60, "the service")
    # Their first pictures have the ids of pictures that are there already.
    photos = write_colour_photos(tmp_path / "more", each=150, size=8)
    job = Job(client, actions, source=str(photos), resume=True)
    waiting, answers = set(), []
    while not answers or answers[-1].candidate_count < before + 900 - 18:
        request = SearchImages.Request(text=WORDS[len(answers) % len(WORDS)], top_n=1)
        waiting |= {searches.call_async(request) for _ in range(16 - len(waiting))}
        client.wait(lambda futures=waiting: any(future.done() for future in futures), 60, "an answer")
        done = {future for future in waiting if future.done()}
        waiting -= done
        answers += [future.result() for future in done]
    client.wait(lambda: all(future.done() for future in waiting), 60, "the last answers")
    client.node.destroy_client(searches)
    assert all(answer.success for answer in answers)
    assert len({answer.candidate_count for answer in answers}) > 2  # some of them in the midst of it
    status, result = job.result()
    assert (status, result.indexed) == (GoalStatus.STATUS_SUCCEEDED, before + 900 - 18)
    assert "18 x id of an image from another place" in result.message


def test_of_two_jobs_at_once_one_is_done(node: Any, client: Any, actions: Any, tmp_path: Path) -> None:
    photos = write_colour_photos(tmp_path / "many", each=50, size=8)
    goals = [BuildIndex.Goal(source=str(photos), index=str(tmp_path / f"{name}.store")) for name in "ab"]
    sent = [actions.send_goal_async(goal) for goal in goals]
    client.wait(lambda: all(future.done() for future in sent), 30, "answers to both goals")
    results = [future.result().get_result_async() for future in sent if future.result().accepted]
    client.wait(lambda: all(future.done() for future in results), 60, "results")
    found = [(future.result().status, future.result().result.message) for future in results]
    assert [status for status, _ in found].count(GoalStatus.STATUS_SUCCEEDED) == 1
    assert all("another job" in message for status, message in found if status == GoalStatus.STATUS_ABORTED)
    assert len(list(tmp_path.glob("*.store"))) == 1


def test_a_goal_whose_caller_is_gone_does_not_block_the_next(lasting_client: Any) -> None:
    """rclpy asks whether a goal is accepted, and does not execute it when the answer cannot be sent."""
    service = RetrievalService(Path("/nowhere"))
    action = IndexAction(lasting_client.node, service, report=lambda _: None)
    goals = [action._accept(BuildIndex.Goal()) for _ in range(2)]
    action.close()
    assert goals == [GoalResponse.ACCEPT] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "is empty"),
        ({"text": "red " * 260_000}, "at most 1,000,000"),
        ({"text": "red", "top_n": 1001}, "1 to 1000"),
        ({"text": "red", "timeout_ms": 1, "page_description": "word " * 150_000}, "no answer within"),
    ],
)
def test_bad_requests_are_answered(node: Any, client: Any, fields: dict[str, Any], message: str) -> None:
    answer = search(client, **fields)
    assert (answer.success, message in answer.message) == (False, True), answer.message
    assert search(client, "red").success


@pytest.mark.parametrize(
    ("goal", "message"), [({"source": "/nowhere"}, "is not a folder"), ({"source": ""}, "holds no image")]
)
def test_bad_goals_are_answered(
    node: Any, client: Any, actions: Any, goal: dict[str, str], message: str, tmp_path: Path
) -> None:
    if not goal["source"]:
        goal = {"source": str(tmp_path)}
    status, result = Job(client, actions, **goal).result()
    assert (status, result.success) == (GoalStatus.STATUS_ABORTED, False)
    assert message in result.message


def test_the_node_ends_in_the_middle_of_a_job(
    start_node: Callable[..., Any], client: Any, bundle: Any, tmp_path: Path
) -> None:
    photos = write_colour_photos(tmp_path / "many", each=300, size=8)
    own = start_node("retrieval_node", namespace="/second", store=str(tmp_path / "s"), model=str(bundle.path))
    actions = ActionClient(client.node, BuildIndex, "/second/index")
    client.wait(actions.server_is_ready, 60, "the action")
    client.known_to(IndexInfo, "/second/index_info")
    sent = actions.send_goal_async(BuildIndex.Goal(source=str(photos)))
    client.wait(sent.done, 30, "an answer to the goal")
    client.wait(lambda: (tmp_path / "s" / "vectors.bin").exists(), 30)
    assert own.stop() == 0
    actions.destroy()
    with RetrievalStore.open(tmp_path / "s") as store:
        tried = store.count + len(
            store.skipped()
        )  # whole batches of 32 pictures, of which one cannot be read
        assert tried % 32 == 0 or tried == 1801
