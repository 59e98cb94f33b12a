"""The DETR detector around its network: input checks, denoising, gradients, detections, classes."""

from types import SimpleNamespace

import pytest
import torch
from detr_reference import SMALL, build, build_again, randomise
from torch import Tensor
from transformers import RTDetrImageProcessor

from anydepth.depth import DepthError
from anydepth.detector import Detector, NonFiniteOutputError
from anydepth.detr.detector import DetrDetector
from anydepth.detr.output import DetrOutput
from anydepth.images import fit_image
from anydepth.layers.norm import switchable_norms
from anydepth.structures import Detections, Targets


@pytest.fixture
def small() -> DetrDetector:
    return build("detr_tiny", 5, **SMALL)


# -- forward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\).*expected \[B, 3, H, W\] float RGB"),
        (torch.zeros(1, 1, 64, 64), r"shape \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "type torch.uint8, expected"),
        (torch.zeros(1, 3, 64, 70), r"64x70, expected multiples of 32; give e\.g\. 64x64"),
        (torch.zeros(1, 3, 0, 64), "multiples of 32"),
    ],
)
def test_images_of_a_wrong_shape_or_type_are_refused(
    small: DetrDetector, images: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(images)


def test_an_unknown_depth_prints_the_space(small: DetrDetector) -> None:
    with pytest.raises(
        DepthError, match=r"unknown stage 'stage9'.*stage1, stage2, stage3, stage4, neck.*1\.\.3"
    ):
        small(torch.zeros(1, 3, 64, 64), depth="stage9@2")


def test_an_image_with_fewer_cells_than_queries_is_refused(small: DetrDetector) -> None:
    many = build_again(small, num_queries=22)
    # 4 x 4 + 2 x 2 + 1 cells.
    with pytest.raises(
        ValueError, match=r"21 cells for 22 queries; use larger images or a smaller num_queries"
    ):
        many(torch.zeros(1, 3, 32, 32))


def test_an_image_of_a_batch_does_not_see_the_others(small: DetrDetector) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, alone = small(images), small(images[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.boxes_cxcywh[1:2], alone.boxes_cxcywh, atol=1e-5, rtol=1e-5)


def test_images_are_normalised_if_the_detector_has_mean_and_deviation(small: DetrDetector) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalising = build_again(small, image_mean=mean, image_std=std)
    normalising.load_state_dict(small.state_dict())
    images = torch.rand(1, 3, 64, 64)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(normalising(images).logits, small(by_hand).logits)
        assert not torch.allclose(normalising(images).logits, small(images).logits)


def test_training_outputs_hold_every_set_of_predictions(small: DetrDetector) -> None:
    targets = [
        Targets(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1])),
        Targets(torch.zeros(0, 4), torch.zeros(0).long()),
    ]
    output = small.train()(torch.rand(2, 3, 64, 64), "minimal", targets)
    assert output.logits.shape == (2, 12, 5)
    assert output.auxiliary_boxes.shape == (3, 2, 12, 4)
    # Budget 6, one box: 6 groups of one positive and one negative.
    assert output.denoising_logits.shape == (3, 2, 12, 5)
    assert small.eval()(torch.rand(1, 3, 64, 64), "minimal", targets[:1]).denoising is None


@pytest.mark.parametrize("boxes", [0, 2])
def test_every_parameter_gets_a_gradient_from_both_extremes_together(small: DetrDetector, boxes: int) -> None:
    # Also without any ground truth: otherwise distributed training waits for ever.
    targets = [Targets(torch.rand(boxes, 4) * 0.3 + 0.3, torch.zeros(boxes).long())] * 2
    small.train()
    images = torch.rand(2, 3, 64, 64)
    for depth in ("full", "minimal"):
        output = small(images, depth, targets)
        sets = [output.logits, output.boxes_cxcywh, output.auxiliary_logits, output.auxiliary_boxes]
        if output.denoising is not None:
            sets += [output.denoising_logits, output.denoising_boxes]
        sum(values.sum() for values in sets).backward()
    without = [name for name, parameter in small.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in small.parameters())


def test_the_box_of_a_layer_also_trains_the_box_head_of_the_layer_before(small: DetrDetector) -> None:
    # "Look forward twice" (specification 1.4): the reference that a box is added to is not detached, but the
    # one that positions and sampling points come from is.
    randomise(small)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    small.train()(images).boxes_cxcywh.square().sum().backward()
    trained = [head.layers[2].weight.grad for head in small.decoder.dec_bbox_head]
    assert not trained[0].any()
    assert trained[1].abs().max() > 0
    assert trained[2].abs().max() > 0


def test_a_minimal_pass_trains_skip_norm_sets_only(small: DetrDetector) -> None:
    small.train()
    small(torch.rand(2, 3, 64, 64), "minimal").logits.sum().backward()
    norms = [norm for _, norm in switchable_norms(small)]
    assert len(norms) == sum(name.endswith(".skip.weight") for name in small.state_dict()) > 0
    for norm in norms:
        assert norm.full.weight.grad is None
        assert norm.skip.weight.grad is not None
    refinement = [p.grad for name, p in small.named_parameters() if ".refinement." in name]
    assert refinement
    assert all(gradient is None for gradient in refinement)


def test_a_fresh_network_predicts_every_class_with_the_prior(small: DetrDetector) -> None:
    # sigmoid(-log(99)) = 0.01, the prior of RetinaNet.
    for head in (small.decoder.enc_score_head, *small.decoder.dec_score_head):
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((5,), 0.01))


def test_a_fresh_network_does_not_move_the_boxes_of_the_selected_queries(small: DetrDetector) -> None:
    with torch.no_grad():
        output = small.train()(torch.rand(2, 3, 64, 64))
    for boxes in (output.boxes_cxcywh, *output.auxiliary_boxes):
        torch.testing.assert_close(boxes, output.auxiliary_boxes[-1], atol=1e-5, rtol=0)


# -- postprocessing --------------------------------------------------------------------------------------


def output_of(logits: list[list[float]], boxes: list[list[float]]) -> DetrOutput:
    return DetrOutput(
        (), (torch.zeros(1, 1, 8, 8),), logits=torch.tensor([logits]), boxes_cxcywh=torch.tensor([boxes])
    )


def test_detections_are_the_best_pairs_of_query_and_class_in_pixels_of_the_original() -> None:
    detector = build("detr_tiny", 2, **SMALL)
    output = output_of([[2.0, 1.0], [-1.0, 3.0]], [[0.5, 0.5, 0.5, 0.5], [0.9, 0.25, 0.4, 0.5]])
    (found,) = detector.postprocess(output, [(100, 200)])
    # Two queries, so two detections: (query 1, class 1), (query 0, class 0).
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())
    # 0.9 +- 0.2 of 200 pixels reaches beyond the border, and is scored so.
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[140.0, 0, 220, 50], [50, 25, 150, 75]]))


def test_detections_are_scored_as_transformers_scores_them() -> None:
    """Hugging Face's own post-processing, with threshold -1 to keep every detection."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 10, 2, generator=generator)
    boxes = torch.rand(2, 10, 4, generator=generator)  # most of them reach beyond the image
    output = DetrOutput((), (torch.zeros(2, 1, 8, 8),), logits=logits, boxes_cxcywh=boxes)
    sizes = [(100, 200), (61, 37)]
    theirs = RTDetrImageProcessor().post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=-1, target_sizes=sizes
    )
    for found, wanted in zip(build("detr_tiny", 2, **SMALL).postprocess(output, sizes), theirs, strict=True):
        torch.testing.assert_close(found.boxes_xyxy, wanted["boxes"])
        torch.testing.assert_close(found.scores, wanted["scores"])
        assert torch.equal(found.labels, wanted["labels"])
    assert theirs[0]["boxes"].min() < 0
    assert theirs[0]["boxes"].max() > 200


def test_predicted_boxes_lie_in_the_image(small: DetrDetector) -> None:
    for name, parameter in small.named_parameters():
        if "dec_bbox_head" in name and name.endswith("layers.2.bias"):
            parameter.data[2:] += 3  # wide and high boxes, which reach beyond the image
    images = [torch.rand(3, 50, 90, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.inference_mode():
        fitted = torch.stack([fit_image(image, small.input_size, small.fit) for image in images])
        (scored, *_) = small.eval().postprocess(small(fitted), [(50, 90)] * 4)
    assert scored.boxes_xyxy.min() < -10
    for found in small.predict(images, threshold=0):
        limit = torch.tensor([90.0, 50.0]).repeat(2)
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= limit).all()
    expected = scored.boxes_xyxy.clamp(min=0).minimum(limit)
    torch.testing.assert_close(small.predict(images, threshold=0)[0].boxes_xyxy, expected)


def test_one_query_may_give_several_classes() -> None:
    detector = build("detr_tiny", 2, **SMALL)
    output = output_of([[2.0, 1.0], [-1.0, -3.0]], [[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]])
    (found,) = detector.postprocess(output, [(10, 10)])
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.boxes_xyxy[0], found.boxes_xyxy[1])


def test_predict_takes_arrays_and_tensors_and_keeps_the_mode(small: DetrDetector) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=generator)
    small.train()
    by_array, by_tensor, by_float = small.predict(
        [image.permute(1, 2, 0).numpy(), image, image / 255], depth="minimal", threshold=0, batch_size=2
    )
    assert small.training
    assert small.backbone.training
    for found in (by_array, by_float, *small.predict(image, depth="minimal", threshold=0)):
        torch.testing.assert_close(found.boxes_xyxy, by_tensor.boxes_xyxy, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found.scores, by_tensor.scores, atol=1e-5, rtol=1e-4)


def test_predictions_are_in_pixels_of_the_original_image(small: DetrDetector) -> None:
    randomise(small)
    (found,) = small.predict(torch.rand(3, 60, 200), threshold=0)
    assert len(found) == 12
    assert (found.scores.diff() <= 0).all()
    assert found.boxes_xyxy.min() >= 0
    # Wider than high: horizontal coordinates exceed the height.
    assert 60 < found.boxes_xyxy[:, [0, 2]].max() <= 200
    assert 0 < found.boxes_xyxy[:, [1, 3]].max() <= 60


def test_predict_drops_detections_below_the_threshold(small: DetrDetector) -> None:
    image = torch.rand(3, 64, 64)
    (everything,) = small.predict(image, threshold=0)
    threshold = float(everything.scores[4])
    (found,) = small.predict(image, threshold=threshold)
    assert isinstance(found, Detections)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 8, 8), r"shape \(4, 8, 8\), expected \[3, H, W\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "type torch.int64, expected uint8 or float"),
        (torch.zeros(8, 8, 3).numpy(), r"shape \(8, 8, 3\) and type float32, expected \[H, W, 3\] uint8"),
    ],
)
def test_predict_refuses_images_of_a_wrong_shape_or_type(
    small: DetrDetector, image: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small.predict(image)


def test_another_number_of_classes_resets_the_class_heads_only(small: DetrDetector) -> None:
    before = {key: value.clone() for key, value in small.state_dict().items()}
    small.reset_classes(["cat", "dog"])
    assert (small.num_classes, small.class_names, small.config["num_classes"]) == (2, ("cat", "dog"), 2)
    changed = {key for key, value in small.state_dict().items() if not torch.equal(value, before[key])}
    heads = ("denoising_class_embed", "enc_score_head", "dec_score_head")
    assert {key.split(".")[1] for key in changed} == set(heads)
    assert small(torch.rand(1, 3, 64, 64)).logits.shape == (1, 12, 2)


def test_new_names_for_as_many_classes_keep_the_heads(small: DetrDetector) -> None:
    head = small.decoder.enc_score_head
    small.reset_classes(list("abcde"))
    assert small.decoder.enc_score_head is head
    assert small.class_names == tuple("abcde")


def test_a_detr_detector_is_a_detector(small: DetrDetector) -> None:
    assert isinstance(small, Detector)


def test_an_output_that_is_not_finite_is_no_empty_result(small_detector: DetrDetector) -> None:
    detector = small_detector.eval()
    with torch.no_grad():
        next(m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var.fill_(-1)
    with pytest.raises(NonFiniteOutputError, match=r"NaN or infinite.*precision=fp32"):
        detector.predict(torch.rand(3, 64, 64), threshold=0)
