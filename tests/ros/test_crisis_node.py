"""The crisis node as a process, over DDS: service, stream, batches, caches, ranking, hostile posts, drift, states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from mca_perception_msgs.msg import CrisisPost, CrisisReport
from mca_perception_msgs.srv import ClassifyCrisis, RankedReports
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from mca_perception.crisis.classifier import CrisisClassifier
from mca_perception.crisis.posts import CrisisReport as Report
from mca_perception.crisis.posts import Post
from mca_perception.ros import qos
from mca_perception.ros.diagnostics import read_status

pytestmark = pytest.mark.xdist_group("test_crisis_node")

URGENT = "Families trapped on roofs, volunteers needed to rescue them, bridge collapsed"
IDLE = "Enjoying my coffee and watching football tonight"


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any]) -> Any:
    return start_node("crisis_node", namespace="/crisis", batch_wait_ms=50.0, drift_window=40)


def facts_of(
    client: Any, ready: Callable[[dict[str, str]], bool], namespace: str = "/crisis"
) -> dict[str, str]:
    """Facts of the crisis node on /diagnostics, once they fulfil a condition; its level is among them."""
    found: list[dict[str, str]] = []

    def look(array: DiagnosticArray) -> None:
        facts = read_status(array, namespace, "crisis")
        if facts is not None and ready(facts):
            found.append({**facts, "level": str(array.status[0].level[0])})

    subscription = client.node.create_subscription(DiagnosticArray, "/diagnostics", look, 10)
    client.wait(lambda: found, 60, "facts of the crisis node")
    client.node.destroy_subscription(subscription)
    return found[0]


@pytest.fixture(autouse=True)
def active(request: pytest.FixtureRequest, client: Any) -> None:
    if "node" in request.fixturenames:
        facts_of(client, lambda facts: facts["state"] == "active")


def classify(client: Any, text: str = "", **fields: Any) -> ClassifyCrisis.Response:
    return client.call(ClassifyCrisis, "/crisis/classify", post=CrisisPost(text=text, **fields))


def test_the_service_answers_as_the_model_does(node: Any, client: Any, repository: Path) -> None:
    header = Header(frame_id="feed")
    header.stamp.sec = 7
    answer = classify(client, URGENT, header=header, post_id="1", event_id="flood")
    (expected,) = CrisisClassifier.from_bundle(repository / "models" / "crisis").classify([Post(URGENT)])
    assert isinstance(expected, Report)
    report = answer.report
    assert (answer.success, answer.message) == (True, "")
    assert (report.header, report.post_id, report.event_id) == (header, "1", "flood")
    assert (report.humanitarian, report.informative.label) == (
        expected.humanitarian.label,
        expected.informative.label,
    )
    assert {entry.label: entry.score for entry in report.humanitarian_scores} == pytest.approx(
        dict(expected.humanitarian_scores), abs=1e-6
    )
    assert report.priority_score == pytest.approx(expected.priority_score, abs=1e-6)
    assert (report.alert, report.uncalibrated, report.cached) == (True, True, False)
    assert report.modalities_used == CrisisReport.MODALITY_TEXT
    assert report.modal_agreement != report.modal_agreement  # NaN
    assert (report.model, report.label_version) == (expected.model, "1")
    assert 0 < report.model_ms <= report.latency_ms


def test_known_posts_come_from_the_cache(node: Any, client: Any) -> None:
    first = classify(client, "Water is rising in the old town", post_id="a").report
    again = classify(client, "Water is rising in the old town", post_id="a").report
    retweet = classify(
        client, "RT @someone: Water is rising in the old town https://t.co/x", post_id="b"
    ).report
    changed = classify(client, "Nothing is rising any more", post_id="a").report
    assert [report.cached for report in (first, again, retweet, changed)] == [False, True, True, False]
    assert retweet.post_id == "b"
    assert retweet.humanitarian_scores == first.humanitarian_scores


def test_concurrent_calls_share_batches(node: Any, client: Any) -> None:
    before = facts_of(client, lambda facts: True)
    service = client.node.create_client(ClassifyCrisis, "/crisis/classify", qos_profile=qos.REQUESTS)
    client.wait(service.service_is_ready, what="the service")
    texts = [f"Road {number} is closed, shelter {number} is open" for number in range(64)]
    futures = [
        service.call_async(ClassifyCrisis.Request(post=CrisisPost(text=text, post_id=text))) for text in texts
    ]
    client.wait(lambda: all(future.done() for future in futures), what="64 answers")
    assert [future.result().report.post_id for future in futures] == texts
    assert all(future.result().success for future in futures)
    after = facts_of(client, lambda facts: int(facts["posts_answered"]) >= int(before["posts_answered"]) + 64)
    assert int(after["posts_batches"]) - int(before["posts_batches"]) < 32
    client.node.destroy_client(service)


def test_the_stream_gives_reports_alerts_and_a_ranking(node: Any, client: Any) -> None:
    reports = client.collect(CrisisReport, "/crisis/reports", qos.POSTS)
    alerts = client.collect(CrisisReport, "/crisis/alerts", qos.POSTS)
    publisher = client.node.create_publisher(CrisisPost, "/crisis/posts", qos.POSTS)
    client.wait(publisher.get_subscription_count, what="the node's subscription")
    for publishers in (client.node.count_publishers, client.node.count_subscribers):
        client.wait(lambda count=publishers: count("/crisis/reports") and count("/crisis/alerts"))
    client.wait(lambda: classify(client, "are we heard", post_id="probe") and reports, what="a first report")
    client.wait(
        lambda: classify(client, f"{URGENT} {len(alerts)} {id(object())}") and alerts, what="a first alert"
    )
    reports.clear()
    alerts.clear()
    texts = {
        "idle": IDLE,
        "none": "",
        "urgent": f"{URGENT} at the river",
        "retweet": f"RT @a: {URGENT} at the river",
    }
    for post_id, text in texts.items():
        publisher.publish(CrisisPost(post_id=post_id, event_id="storm", text=text))
        client.wait(lambda post_id=post_id: [r for r in reports if r.post_id == post_id], what=post_id)
    by_id = {report.post_id: report for report in reports if report.post_id in texts}
    assert [by_id[post_id].alert for post_id in texts] == [False, False, True, True]
    assert by_id["none"].humanitarian == ""
    assert "the post is empty" in by_id["none"].warnings[0]
    assert by_id["none"].model == by_id["idle"].model != ""
    assert by_id["retweet"].cached
    client.wait(lambda: [report for report in alerts if report.post_id == "urgent"], what="the alert")
    assert [report.post_id for report in alerts if report.event_id == "storm"] == ["urgent"]  # not the copy
    ranked = client.call(RankedReports, "/crisis/ranked", event_id="storm")
    assert [report.post_id for report in ranked.reports] == ["urgent", "idle"]
    assert ranked.event_ids[-1] == "storm"
    best = client.call(RankedReports, "/crisis/ranked", event_id="storm", limit=1)
    assert [report.post_id for report in best.reports] == ["urgent"]
    client.node.destroy_publisher(publisher)


def image(data: bytes = b"no image") -> CompressedImage:
    return CompressedImage(format="jpeg", data=data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the post is empty"),
        ({"text": " \n\t "}, "the post is empty"),
        ({"images": [image()]}, "images only"),
        ({"text": "flood", "event_id": "e" * 300}, "at most 256 characters"),
    ],
)
def test_what_cannot_be_categorised_is_refused(
    node: Any, client: Any, fields: dict[str, Any], message: str
) -> None:
    answer = classify(client, **fields)
    assert not answer.success
    assert message in answer.message
    assert answer.report.humanitarian == ""
    assert (answer.report.model.split("@")[0], answer.report.label_version) == ("crisis", "1")


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({"text": "water " * 170_000}, ["only the first 10,000"]),
        ({"text": "\N{FIRE}" * 10_000}, []),
        ({"text": "محتاجين مساعدة عاجلة help 救助"}, []),
        ({"text": "boat needed", "images": [image()]}, ["1 did not count", "image 1 cannot be read"]),
        (
            {"text": "boats needed", "images": [image()] * 50},
            ["50 did not count", "first 8 of 50", *["image"] * 8],
        ),
    ],
)
def test_hostile_posts_get_a_degraded_answer(
    node: Any, client: Any, fields: dict[str, Any], warnings: list[str]
) -> None:
    answer = classify(client, **fields)
    assert answer.success, answer.message
    assert len(answer.report.warnings) == len(warnings)
    assert all(part in text for part, text in zip(warnings, answer.report.warnings, strict=True))
    assert answer.report.modalities_used == CrisisReport.MODALITY_TEXT
    assert node.process.poll() is None


def test_drift_shows_in_the_diagnostics(node: Any, client: Any) -> None:
    for number in range(40):
        classify(client, f"{URGENT} number {number}")
    facts = facts_of(client, lambda facts: facts["drift"] == "strong")
    assert facts["level"] == str(DiagnosticStatus.WARN[0])
    assert "differ strongly" in facts["message"]
    assert float(facts["drift_index"]) > 0.25
    assert facts["drift_posts"] == "40"


def test_the_service_comes_and_goes_with_the_state(node: Any, client: Any) -> None:
    def change(transition: int) -> bool:
        request = Transition(id=transition)
        return bool(client.call(ChangeState, "/crisis/crisis/change_state", transition=request).success)

    assert change(Transition.TRANSITION_DEACTIVATE)
    facts_of(client, lambda facts: facts["state"] == "inactive")
    assert change(Transition.TRANSITION_CLEANUP)
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    facts_of(client, lambda facts: facts["state"] == "active" and facts["posts_answered"] == "0")
    assert classify(client, URGENT).success
    assert node.stop() == 0


def test_a_bundle_that_cannot_be_used_is_named(
    start_node: Callable[..., Any], client: Any, repository: Path
) -> None:
    node = start_node("crisis_node", namespace="/wrong", model=str(repository / "models" / "nano"))
    facts = facts_of(client, lambda facts: facts["last_error"] != "", "/wrong")
    assert "'text' is not valid" in facts["last_error"]
    assert (facts["state"], facts["level"]) == ("unconfigured", str(DiagnosticStatus.ERROR[0]))
    assert node.stop() == 0


def test_a_wrong_parameter_ends_the_process(start_node: Callable[..., Any]) -> None:
    node = start_node("crisis_node", namespace="/limits", batch_size=1000)
    assert node.wait() == 2
    assert "batch_size" in node.output()
