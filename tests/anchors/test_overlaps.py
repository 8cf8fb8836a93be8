import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from anchor_sets import simple_config, squares, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.anchors.coverage import describe_anchors, match_threshold
from retina_ray.anchors.overlaps import BestOverlaps, grid_size
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import AnchorConfig, AugmentConfig, ConfigError, with_overrides
from retina_ray.errors import DataError
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.boxes import box_iou

EQUAL = (4, 4, 20, 20)  # the anchor of 16 px at (12, 12)
THIN = (0, 30, 64, 32)  # 64 x 2
PIXEL = (10, 10, 11, 11)


def boxes_of(dataset, config, **options):
    return TrainingBoxes.from_dataset(dataset, config.input, **{"max_images": 1000, **options})


def report(folder, images, config=None, **options):
    config = config or simple_config()
    return describe_anchors(config, boxes_of(write_set(folder, images, **options), config))


@pytest.mark.parametrize(
    ("boxes", "low_quality_rule", "figures"),
    [
        # Its neighbours have an IoU of 1/3, the anchor of 32 px around it one of 1/4.
        ([EQUAL], True, (1, 1, 1, 0, 0)),
        # An anchor of 16 px shares 16 x 2 with it: 32 / (256 + 128 - 32) = 1/11. Those at y = 28
        # and y = 36 do, at x = 12 to 52, which makes 12.
        ([THIN], True, (0, 1 / 11, 12, 1, 0)),
        ([THIN], False, (0, 1 / 11, 0, 0, 1)),
        # Four anchors of 16 px hold one of a pixel, at an IoU of 1/256.
        ([PIXEL], True, (0, 1 / 256, 4, 1, 0)),
        # Of two boxes on one place the second has no anchor.
        ([EQUAL, EQUAL], True, (1, 1, 0.5, 0, 0.5)),
    ],
)
def test_figures_of_boxes(tmp_path, boxes, low_quality_rule, figures):
    config = simple_config(**{"matcher.allow_low_quality": low_quality_rule})
    found = report(tmp_path / "set", [boxes], config).overall
    learnt = (found.positives, found.low_quality, found.without)
    assert (found.recall, found.mean_iou, *learnt) == pytest.approx(figures)


def test_an_anchor_claimed_by_one_box_may_learn_another(tmp_path):
    """The pixel's best anchors overlap the equal box more, and learn that.

    All four hold the pixel and parts of the equal box, so the pixel ends without an anchor.
    """
    found = report(tmp_path / "set", [[EQUAL, (*PIXEL, 1)]])
    assert found.by_class["dog"].without == 1.0
    assert (found.by_class["cat"].positives, found.by_class["cat"].low_quality) == (4, 0.0)


def test_figures_by_size_and_class(tmp_path):
    """256, 128 and 1 square pixels are small, 32 x 32 and 64 x 64 medium, 96 x 96 large."""
    images = [[EQUAL, (*THIN, 2)], [(32, 32, 64, 64, 1)], [(0, 0, 64, 64)], [(0, 0, 96, 96, 1)]]
    found = report(tmp_path / "set", images, size=(128, 128), config=_at(128))

    def counts(parts):
        return {name: part.num_boxes for name, part in parts.items()}

    assert counts(found.by_size) == {"small": 2, "medium": 2, "large": 1}
    assert counts(found.by_class) == {"cat": 2, "dog": 2, "newt": 1}
    assert found.by_size["small"].recall == 0.5
    assert found.by_class["newt"].recall == 0
    assert found.overall.num_boxes == 5
    few = report(tmp_path / "few", [[EQUAL]])
    assert set(few.by_class) == {"cat"}
    assert few.by_size["large"].num_boxes == 0
    assert math.isnan(few.by_size["large"].recall)


def _at(*lengths, **overrides):
    lengths_px = {"input.train_sizes_px": lengths, "input.eval_size_px": 64}
    return simple_config(**lengths_px, **overrides)


def test_images_without_boxes_and_crowd_regions_count_for_nothing(tmp_path):
    plain = report(tmp_path / "plain", [[EQUAL], [THIN]])
    crowd = (0, 0, 50, 50, 0, 1)
    mixed = write_set(tmp_path / "mixed", [[], [EQUAL, crowd], [crowd], [THIN], []])
    boxes = boxes_of(mixed, simple_config())
    assert (boxes.num_crowd, boxes.num_images, len(boxes)) == (2, 5, 2)
    found = describe_anchors(simple_config(), boxes)
    assert (found.overall, found.by_class) == (plain.overall, plain.by_class)


def test_boxes_below_the_smallest_size_are_left_out_and_counted(tmp_path):
    dataset = write_set(tmp_path / "set", [[EQUAL, PIXEL, (0, 0, 9, 9, 0, 1)]])
    assert len(boxes_of(dataset, simple_config())) == 2
    boxes = boxes_of(dataset, _at(32))
    assert (len(boxes), boxes.num_too_small) == (1, 1)
    with pytest.raises(DataError, match=r"no box is left.*1 crowd.*2 boxes below"):
        boxes_of(dataset, simple_config(**{"input.min_box_size_px": 40.0}))


def test_a_box_with_a_nan_is_left_out(tmp_path, monkeypatch):
    dataset = write_set(tmp_path / "set", [[EQUAL, THIN]])
    table = dataset.annotations()
    rows = [[[4.0, 4.0, 20.0, 20.0], [0.0, float("nan"), 64.0, 32.0]]]
    column = pa.array(rows, table.schema.field("boxes").type)
    place = table.schema.get_field_index("boxes")
    monkeypatch.setattr(dataset, "annotations", lambda: table.set_column(place, "boxes", column))
    boxes = boxes_of(dataset, simple_config())
    assert boxes.boxes.tolist() == [list(map(float, EQUAL))]
    assert boxes.num_too_small == 1


def test_boxes_are_measured_at_each_training_size(tmp_path):
    """At 128 px the box is the anchor of 32 px at (24, 24); at 96 px it has 24 px."""
    dataset = write_set(tmp_path / "set", [[EQUAL]])
    boxes = boxes_of(dataset, _at(64, 128))
    assert boxes.boxes.tolist() == [[4, 4, 20, 20], [8, 8, 40, 40]]
    assert boxes.sizes.tolist() == [[64, 64], [128, 128]]
    assert describe_anchors(_at(64, 128), boxes).overall.mean_iou == 1.0
    between = boxes_of(dataset, _at(64, 128, **{"input.train_size_sampling": "range"}))
    assert between.lengths_px == (64, 80, 96, 112, 128)
    assert len(between) == 5


def test_a_sample_of_a_larger_set(tmp_path):
    dataset = write_set(tmp_path / "set", squares(20, 30, size=(64, 64)))
    config = simple_config()
    once = boxes_of(dataset, config, max_images=10, seed=1)
    again = boxes_of(dataset, config, max_images=10, seed=1)
    other = boxes_of(dataset, config, max_images=10, seed=2)
    assert (once.num_images, once.num_images_in_set, len(once)) == (10, 30, 10)
    assert torch.equal(once.boxes, again.boxes)
    assert not torch.equal(once.boxes, other.boxes)
    assert len(boxes_of(dataset, config, max_images=30)) == 30


def test_a_subset_keeps_boxes_in_their_pictures(tmp_path):
    boxes = boxes_of(write_set(tmp_path / "set", squares(20, 30, size=(64, 64))), simple_config())
    few = boxes.subset(7, seed=3)
    assert len(few) == 7
    assert boxes.subset(30) is boxes
    whole = {tuple(b): p for b, p in zip(boxes.boxes.tolist(), boxes.image.tolist(), strict=True)}
    drawn = zip(few.boxes.tolist(), few.image.tolist(), strict=True)
    assert all(whole[tuple(box)] == picture for box, picture in drawn)
    assert describe_anchors(simple_config(), few).overall.num_boxes == 7


def test_augmentation_that_is_not_considered_is_named(tmp_path):
    dataset = write_set(tmp_path / "set", [[EQUAL]])
    assert boxes_of(dataset, simple_config()).not_considered == ()
    augment = AugmentConfig(crop_prob=0.5, scale_jitter=(0.5, 2.0))
    boxes = boxes_of(dataset, with_overrides(simple_config(), {"input.augment": augment}))
    assert boxes.not_considered == ("input.augment.crop_prob", "input.augment.scale_jitter")


def test_rotated_boxes_are_refused(tmp_path):
    boxes = boxes_of(write_set(tmp_path / "set", [[EQUAL]]), simple_config())
    with pytest.raises(ConfigError, match=r"model.box_type.*aligned boxes only"):
        describe_anchors(simple_config(**{"model.box_type": "rotated"}), boxes)


@pytest.mark.parametrize("method", ["best", "atss"])
def test_other_assigners(tmp_path, method):
    """With `best`, the equal box has its equal anchor and the thin one a single anchor."""
    config = simple_config(**{"matcher.method": method, "matcher.high": 0.6})
    assert match_threshold(config.matcher) == (0.6 if method == "best" else 0.5)
    found = report(tmp_path / "set", [[EQUAL], [THIN]], config)
    assert found.overall.recall == 0.5
    if method == "best":
        assert (found.overall.positives, found.overall.low_quality) == (1.0, 0.5)


def test_many_pictures_are_matched_as_one_by_one(tmp_path, monkeypatch):
    """The batches of the matcher change nothing, nor does the number of threads."""
    rng = np.random.default_rng(0)
    images = [
        [(x, y, x + 20 * (i % 3 + 1), y + 15, i % 3) for i, (x, y) in enumerate(places)]
        for places in (rng.uniform(0, 60, (num, 2)) for num in (0, 3, 1, 0, 5, 2))
    ]
    dataset = write_set(tmp_path / "set", images, size=(90, 140))
    config, threads = _at(64, 90), torch.get_num_threads()
    boxes = boxes_of(dataset, config)
    together = describe_anchors(config, boxes)
    assert min(part.num_boxes for part in together.by_class.values()) > 0
    monkeypatch.setattr("retina_ray.anchors.coverage._MAX_ENTRIES", 1)
    alone = describe_anchors(config, boxes)
    assert (alone.overall, alone.by_class) == (together.overall, together.by_class)
    assert len(boxes) == 22
    assert torch.get_num_threads() == threads


def sides(most):
    return st.floats(1, most, allow_nan=False).map(lambda value: float(np.float32(value)))


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    box=st.tuples(sides(150), sides(150)),
    factor=st.floats(0.2, 4),
    ratio=st.sampled_from([0.2, 1.0, 3.0]),
    offset=st.sampled_from([0.0, 0.5]),
)
def test_the_nearest_cell_has_the_largest_overlap(size, place, box, factor, ratio, offset):
    """Against every anchor of the real grid."""
    height, width = size
    box_width, box_height = min(box[0], width), min(box[1], height)
    x, y = place[0] * (width - box_width), place[1] * (height - box_height)
    config = simple_config(
        **{
            "model.anchors.scale": factor,
            "model.anchors.aspect_ratios": (1.0, ratio) if ratio != 1 else (1.0,),
            "model.anchors.octave_scales": (1.0, 1.5),
            "model.anchors.offset": offset,
        }
    )
    boxes = TrainingBoxes(
        boxes=torch.tensor([[x, y, x + box_width, y + box_height]]),
        labels=torch.zeros(1, dtype=torch.int64),
        image=torch.zeros(1, dtype=torch.int64),
        sizes=torch.tensor([size]),
        class_names=("cat",),
        lengths_px=(64,),
        num_images=1,
        num_images_in_set=1,
        num_crowd=0,
        num_too_small=0,
        size_divisibility_px=32,
    )
    padded = (-(-height // 32) * 32, -(-width // 32) * 32)
    assert boxes.padded_sizes().tolist() == [list(padded)]
    generator = AnchorGenerator.from_config(config.model)
    anchors = torch.cat(generator([grid_size(padded, stride) for stride in generator.strides]))
    expected = box_iou(boxes.boxes, anchors).max()
    found = BestOverlaps(boxes, config.model).of(config.model.anchors)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_kept_shapes_are_those_of_the_setting(tmp_path):
    """A second setting, asked of the same object, has its own figures."""
    boxes = boxes_of(write_set(tmp_path / "set", [[EQUAL], [THIN]]), simple_config())
    overlaps = BestOverlaps(boxes, simple_config().model)
    base = simple_config().model.anchors
    assert overlaps.of(base).tolist() == pytest.approx([1.0, 1 / 11])
    doubled = base.model_copy(update={"scale": 2.0})
    assert overlaps.of(doubled)[0] == pytest.approx(0.25)
    wide = AnchorConfig(sizes=base.sizes, octave_scales=(1.0,), aspect_ratios=(0.25,))
    assert overlaps.of(wide)[0] == pytest.approx(1 / 3)  # 16 x 8 of 256 each
    assert overlaps.of(base).tolist() == pytest.approx([1.0, 1 / 11])


def test_padding_of_a_batch_is_not_a_picture(tmp_path):
    """Boxes at the border of a picture of 40 px: the grid ends at its own padding, 64 px."""
    dataset = write_set(tmp_path / "set", [[(24, 24, 40, 40)]], size=(40, 40))
    config = _at(40)
    boxes = boxes_of(dataset, config)
    assert boxes.padded_sizes().tolist() == [[64, 64]]
    unpadded = replace(boxes, size_divisibility_px=8)
    assert unpadded.padded_sizes().tolist() == [[40, 40]]
    # 16 px at (36, 36), or at (28, 28): 12 x 12 of 256 each.
    assert describe_anchors(config, unpadded).overall.mean_iou == pytest.approx(144 / 368)


def test_no_cell_lies_beyond_the_grid(tmp_path):
    """At an offset of 0 the last anchor of 8 px is centred at 56: it shares 3 x 3 with the box.

    One at 64 would share more, as would one of 16 px there.
    """
    config = simple_config(**{"model.anchors.offset": 0.0, "model.anchors.scale": 0.5})
    found = report(tmp_path / "set", [[(57, 57, 64, 64)]], config).overall
    assert found.mean_iou == pytest.approx(9 / (64 + 49 - 9))
