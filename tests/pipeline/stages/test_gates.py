"""The verdict on accuracy: what pruning cost, and whether the network is better than a constant answer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.report.summary import Summary, Verdict, accuracy_cost
from atopipe.pipeline.stages.validate.gates import images_off_limit, majority_gate
from atopipe.validate.gates import judge

LABELS = np.array([0] * 60 + [1] * 20 + [2] * 20)


def test_one_image_or_one_in_ten_thousand_may_be_answered_otherwise() -> None:
    assert [images_off_limit(count) for count in (1, 360, 10_000, 50_000)] == [1, 1, 1, 5]


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        (LABELS, "pass"),
        (np.zeros_like(LABELS), "fail"),  # the constant answer itself
        (np.ones_like(LABELS), "fail"),
        ((LABELS + 1) % 3, "fail"),
        (np.where(np.arange(100) < 61, 0, LABELS), "pass"),
        (np.where(np.arange(100) == 99, LABELS, 0), "inconclusive"),  # one image better: it may be chance
        (np.where(np.arange(100) == 0, 1, 0), "fail"),
    ],
)
def test_a_network_no_better_than_one_constant_answer_never_passes(answers: np.ndarray, outcome: str) -> None:
    verdict = judge(majority_gate(answers, LABELS))
    assert verdict.outcome.value == outcome
    assert verdict.gate.value == pytest.approx((answers == LABELS).mean() - 0.6)


def test_one_class_alone_cannot_show_that_a_network_has_learnt_anything() -> None:
    assert judge(majority_gate(np.zeros(50, int), np.zeros(50, int))).outcome.value == "fail"


@pytest.mark.parametrize(
    ("baseline", "given", "limit"),
    [(True, None, 0.05), (True, 0.3, 0.3), (True, 0.0, 0.0), (True, 1.0, None), (False, None, None)],
)
def test_a_loss_of_five_points_is_a_failure_unless_another_limit_is_set(
    baseline: bool, given: float | None, limit: float | None
) -> None:
    raw = {"model": {"name": "resnet18"}, "target_flops": 0.5, "baseline": baseline}
    assert Config.model_validate({**raw, "gates": {"max_accuracy_drop": given}}).max_accuracy_drop == limit


def test_the_headline_says_what_pruning_cost_or_how_to_find_out() -> None:
    metrics = {"accuracy.drop": 0.0382, "accuracy.drop_low": 0.021, "accuracy.drop_high": 0.0555}
    assert accuracy_cost(metrics) == "cost in accuracy: 3.82 points of top-1 (95 % interval 2.10 to 5.55)"
    assert accuracy_cost({}) == "cost in accuracy unknown: --baseline"


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        (["pass", "fail", "inconclusive"], "REJECTED, do not use: failed gate 1"),
        (["pass", "inconclusive"], "not accepted yet, undecided: gate 1"),
        (["pass"], "accepted: every gate passed"),
    ],
)
def test_the_summary_says_whether_the_model_may_be_used(outcomes: list[str], decision: str) -> None:
    verdicts = tuple(Verdict(f"gate {number}", outcome, "") for number, outcome in enumerate(outcomes))
    assert Summary("run", (), verdicts, "cost", "target", "model.onnx", 1.0).decision == decision


def test_every_form_of_the_summary_begins_with_the_decision_and_the_cost(finished: Path) -> None:
    metrics = json.loads((finished / "out/metrics.json").read_text())
    cost = accuracy_cost(metrics)
    assert cost.startswith("cost in accuracy: ")
    head = ["**accepted: every gate passed**", "", f"**{cost}**"]
    assert (finished / "out/summary.md").read_text().splitlines()[2:5] == head
    assert (finished / "out/report.html").read_text().index(cost.capitalize()) < 9000
    assert f"\n\n**{cost}**\n" in (finished / "out/bundle/MODEL_CARD.md").read_text()


FLIPPED = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, images):
        logits = super().forward(images)
        return logits if self.training else -logits

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
    return Net(*body, nn.Flatten(), nn.Linear(256, num_classes))
"""


def test_a_network_whose_logits_are_flipped_when_it_evaluates_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "flipped.py").write_text(FLIPPED)
    (tmp_path / "config.yaml").write_text(
        "{model: 'flipped:net', target_flops: 0.9, recipe: {epochs: 3, batch_size: 128, align: 1}, preflight: false,"
        " validation: {latency_s: 0.1}, threads: 1, device: cpu}"
    )
    assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("atopipe: gate failed: accuracy.above_majority = -0.")
    assert " is not at least 0.00277778: always answering the most frequent class is right on 0.1" in said
    assert "of the validation images, the network on 0.0" in said
    assert "cost in accuracy unknown: --baseline" in (tmp_path / "out/summary.md").read_text()
