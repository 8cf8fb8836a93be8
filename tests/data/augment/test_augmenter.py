"""The augmenter: each change by hand, its draws, and that nothing on is what it always was."""

import pickle
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.config import AugmentConfig, InputConfig
from retina_ray.data.augment import augmenter as augment
from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.augment.colour import ColourJitter
from retina_ray.data.augment.mixing import FILL
from retina_ray.data.augment.transforms import (
    LabeledImage,
    flip_boxes,
    place_boxes,
    resize_image,
    shortest_edge_size,
)
from retina_ray.data.augment.views import LazyImage
from retina_ray.data.images.decoding import decode_image
from retina_ray.data.random_streams import image_stream, random_stream
from retina_ray.data.rotated_boxes import rotate90_rotated

FLIPS = ("none", "horizontal", "vertical", "both")
EVERYTHING = Augmenter(
    flip="both",
    rotate_90=True,
    crop_prob=0.5,
    scale_jitter=(0.5, 2.0),
    colour=ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
)


def source(image: np.ndarray, boxes=(), labels=None) -> LazyImage:
    boxes = np.array(boxes, np.float32)
    boxes = boxes if boxes.size else boxes.reshape(-1, 4)
    labels = np.arange(len(boxes)) if labels is None else labels
    return LazyImage(lambda _: image, image.shape[:2], boxes, np.asarray(labels, np.int32))


def flat(height: int, width: int, level) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def run(augmenter, main, partners=(), *, size_px=None, max_size_px=2000, seed=0, **options):
    """Size of the picture itself, where none is given."""
    size_px = min(main.size) if size_px is None else size_px
    return augmenter(
        main,
        partners,
        target_size=shortest_edge_size(*main.size, size_px, max_size_px),
        size_px=size_px,
        max_size_px=max_size_px,
        rng=options.pop("rng", None) or image_stream(seed, 0, 0),
        **options,
    )


def assert_same(a: LabeledImage, b: LabeledImage) -> None:
    for one, other in ((a.image, b.image), (a.boxes, b.boxes), (a.labels, b.labels)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def plain(main: LazyImage, target, flip, rng) -> LabeledImage:
    """Resize and flip, written out."""
    coins = rng.random(2) < 0.5
    across = bool(coins[0]) and flip in ("horizontal", "both")
    down = bool(coins[1]) and flip in ("vertical", "both")
    image = resize_image(main.decode(min(target)), *target)
    image = image[:: -1 if down else 1, :: -1 if across else 1]
    boxes = flip_boxes(
        place_boxes(main.boxes, main.size, target), *target, horizontal=across, vertical=down
    )
    sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
    keep = sides.min(axis=1) >= 1
    return LabeledImage(image, boxes[keep], main.labels[keep])


# Nothing on


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 150),
    st.sampled_from(FLIPS),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_nothing_on_gives_the_same_bytes_as_resizing_and_flipping(
    height, width, size_px, flip, rotated, seed
):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((rng.integers(0, 6), 2, 2)) * [width, height], axis=1)
    boxes = corners.reshape(-1, 4).astype(np.float32)
    if rotated:
        boxes = np.concatenate([boxes, rng.random((len(boxes), 1)) * 360 - 180], axis=1)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    main = source(picture, boxes.astype(np.float32).reshape(-1, 5 if rotated else 4))
    target = shortest_edge_size(height, width, size_px, 200)
    expected = plain(main, target, flip, image_stream(seed, 1, 2))
    # What cannot happen, or changes nothing, draws from other streams.
    for augmenter in (
        Augmenter(flip=flip),
        Augmenter(flip=flip, crop_prob=1e-12),
        Augmenter(flip=flip, scale_jitter=(1.0, 1.0)),
        Augmenter(flip=flip, crop_prob=1.0, crop_min_scale=1.0),
    ):
        found = run(augmenter, main, size_px=size_px, max_size_px=200, rng=image_stream(seed, 1, 2))
        assert_same(found, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 90),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_a_given_place_gets_the_same_bytes_and_nothing_beside_it(
    height, width, size_px, turn, everything, seed
):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    before = picture.copy()
    main = source(picture, [[0, 0, width, height]])
    augmenter = EVERYTHING if everything else Augmenter(flip="both", rotate_90=turn)
    options = {"size_px": size_px, "max_size_px": 120, "seed": seed}
    expected = run(augmenter, main, **options)
    target = shortest_edge_size(height, width, size_px, 120)
    room = np.full((target[0] + 2, target[1] + 3, 3), 9, np.uint8)
    place = room[: target[0], : target[1]]
    found = run(augmenter, main, **options, out=place)
    assert_same(found, expected)
    np.testing.assert_array_equal(picture, before)
    assert (room[target[0] :] == 9).all()
    assert (room[:, target[1] :] == 9).all()
    if target != (height, width) and not (turn or everything):
        assert np.may_share_memory(found.image, place)


def test_small_flat_and_nan_boxes_are_dropped():
    boxes = [[0, 0, 4, 4], [0, 0, 1.9, 8], [0, 0, 2, 8], [3, 3, 3, 9], [np.nan, 0, 4, 4]]

    def kept(min_box_size_px: float, **options) -> list[int]:
        augmenter = Augmenter(flip="both", min_box_size_px=min_box_size_px, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample = run(augmenter, source(flat(20, 20, 0), boxes), size_px=10)
        assert len(sample.boxes) == len(sample.labels)
        return sample.labels.tolist()

    assert kept(1) == [0, 2]  # halved: 2, 0.95, exactly 1
    assert kept(0) == [0, 1, 2]
    assert set(kept(0, crop_prob=1.0, rotate_90=True, scale_jitter=(0.5, 2.0))) <= {0, 1, 2}


def test_one_pixel():
    everything = [Augmenter(flip="both"), EVERYTHING]
    for augmenter in everything:
        for seed in range(20):
            main = source(flat(1, 1, 9), [[0, 0, 1, 1]])
            sample = run(augmenter, main, [main] * 4, size_px=1, mosaic=True, mixup=True, seed=seed)
            assert sample.image.shape == (1, 1, 3)
            assert sample.labels.tolist() in ([0, 0], [0])
    sample = run(Augmenter(flip="both"), source(flat(1, 1, 9), [[0, 0, 1, 1]]), size_px=5)
    assert (sample.image == 9).all()
    assert sample.boxes.tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    ("k", "angle", "expected"),
    [
        (1, 30, [3, 15, 8, 2, 120]),  # the width points up instead of right
        (1, 120, [3, 15, 8, 2, -150]),
        (0, 200, [5, 3, 8, 2, 200]),
    ],
)
def test_a_quarter_turn_of_a_rotated_box(k, angle, expected):
    """In a picture 10 high and 20 wide."""
    assert rotate90_rotated(np.array([[5, 3, 8, 2, angle]]), 10, 20, k).tolist() == [expected]


def test_each_rotation_comes_a_quarter_of_the_time_and_rotates_the_target():
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    turns = [np.rot90(image, k).tobytes() for k in range(4)]
    found = []
    for seed in range(400):
        sample = run(Augmenter(rotate_90=True), source(image), seed=seed)
        found.append(turns.index(sample.image.tobytes()))
        assert sample.image.shape[:2] == ((3, 5), (5, 3))[found[-1] % 2]
    np.testing.assert_allclose(np.bincount(found) / 400, 0.25, atol=0.07)


# Crop and jitter


def test_a_crop_gives_the_target_size_of_its_own_shape():
    main = source(flat(100, 150, 80), [[20, 20, 90, 80]])
    shapes = set()
    for seed in range(100):
        sample = run(Augmenter(crop_prob=1.0), main, size_px=60, max_size_px=90, seed=seed)
        height, width = sample.image.shape[:2]
        assert min(height, width) == 60 or max(height, width) == 90
        assert (sample.image == 80).all()
        assert len(sample.boxes) == 1
        shapes.add((height, width))
    assert len(shapes) > 20


def test_crops_happen_as_often_as_they_should():
    main = source(flat(100, 100, 80))
    augmenter = Augmenter(crop_prob=0.3, crop_min_scale=0.5)
    cropped = [run(augmenter, main, seed=s).image.shape[:2] != (100, 100) for s in range(1000)]
    np.testing.assert_allclose(np.mean(cropped), 0.3, atol=0.05)


def test_smaller_jitter_pads_with_grey():
    main = source(flat(40, 60, 7), [[0, 0, 60, 40]])
    sample = run(Augmenter(scale_jitter=(0.5, 0.5)), main)
    assert sample.image.shape == (40, 60, 3)
    assert sample.boxes.tolist() == [[0, 0, 30, 20]]
    assert (sample.image[:20, :30] == 7).all()
    assert (sample.image[20:] == FILL).all()
    assert (sample.image[:, 30:] == FILL).all()


def test_larger_jitter_shows_a_window_anywhere():
    height, width = 40, 60
    main = source(flat(height, width, 7), [[0, 0, width, height], [10, 10, 20, 20]])
    places = set()
    for seed in range(200):
        sample = run(Augmenter(scale_jitter=(2.0, 2.0)), main, seed=seed)
        assert sample.image.shape == (height, width, 3)
        assert (sample.image == 7).all()
        assert sample.boxes[0].tolist() == [0, 0, width, height]
        places |= {tuple(box) for box in sample.boxes[1:].tolist()}
    assert max(x1 - x0 for x0, _, x1, _ in places) == 20
    assert len(places) > 50


def test_jitter_is_uniform_in_its_logarithm():
    main = source(flat(100, 100, 7), [[0, 0, 100, 100]])
    augmenter = Augmenter(scale_jitter=(0.1, 1.0))
    factors = [run(augmenter, main, seed=s).boxes[0, 2] / 100 for s in range(800)]
    shares = np.histogram(np.log10(factors), 4, (-1, 0))[0] / 800
    np.testing.assert_allclose(shares, 0.25, atol=0.06)


# Mosaic and mixup


def test_a_mosaic_has_four_pictures_around_a_point():
    sources = [source(flat(40, 60, 10 * i), [[0, 0, 60, 40]], [i]) for i in range(1, 5)]
    augmenter = Augmenter(flip="both", mosaic_scale=(1.5, 1.5), min_visible=0)
    centres = []
    for seed in range(100):
        sample = run(augmenter, sources[0], sources[1:], mosaic=True, seed=seed)
        assert sample.image.shape == (40, 60, 3)
        x0, y0, x1, y1 = sample.boxes[0].astype(int).tolist()
        assert (x0, y0) == (0, 0)
        corners = [[0, 0, x1, y1], [x1, 0, 60, y1], [0, y1, x1, 40], [x1, y1, 60, 40]]
        assert sample.boxes.tolist() == corners
        assert sample.labels.tolist() == [1, 2, 3, 4]
        for (a, b, c, d), label in zip(corners, sample.labels, strict=True):
            assert (sample.image[b:d, a:c] == 10 * label).all()
        centres.append((x1 / 60, y1 / 40))
    assert np.min(centres) >= 0.25
    assert np.max(centres) <= 0.75
    np.testing.assert_allclose(np.mean(centres, axis=0), 0.5, atol=0.05)


def test_small_pictures_of_a_mosaic_touch_its_centre_and_leave_grey():
    sources = [source(flat(40, 60, 10 * i), [[0, 0, 60, 40]], [i]) for i in range(1, 5)]
    for flip, seed in [("none", 0), ("both", 1), ("both", 2), ("both", 3)]:
        augmenter = Augmenter(flip=flip, mosaic_scale=(0.2, 0.2))
        sample = run(augmenter, sources[0], sources[1:], mosaic=True, seed=seed)
        x, y = sample.boxes[0, 2:].tolist()
        expected = [[x - 12, y - 8, x, y], [x, y - 8, x + 12, y]]
        expected += [[a, b + 8, c, d + 8] for a, b, c, d in expected]
        assert sample.boxes.tolist() == expected
        assert (sample.image == FILL).all(axis=2).sum() == 40 * 60 - 4 * 12 * 8


def test_corners_of_the_pictures_touch_the_centre_of_a_mosaic():
    picture = flat(40, 60, 0)
    for rows in (slice(0, 4), slice(36, 40)):
        for columns in (slice(0, 4), slice(56, 60)):
            picture[rows, columns] = 255
    for seed in range(40):
        pictures = [source(picture)] * 4
        augmenter = Augmenter(flip="both", rotate_90=True, mosaic_scale=(1.0, 1.0))
        image = run(augmenter, pictures[0], pictures[1:], mosaic=True, seed=seed).image[..., 0]
        white = cv2.connectedComponentsWithStats(image)[2][1:]
        # Four corners that touch each other, four pixels wide (other corners may be seen, too).
        assert [8, 8, 64] in white[:, 2:].tolist()


def test_mixup_blends_and_keeps_the_boxes_of_both():
    main = source(flat(40, 60, 100), [[10, 10, 50, 30]], [3])
    other = source(flat(90, 30, 200), [[0, 0, 30, 90]], [5])
    shares = []
    for seed in range(400):
        sample = run(Augmenter(mixup_alpha=1.5), main, [other], mixup=True, seed=seed)
        assert sample.image.shape == (40, 60, 3)
        assert sample.labels.tolist() == [3, 5]
        # 90 x 30 fits into 40 x 60 as 40 x 13; what is beside it is blended with grey.
        assert sample.boxes.tolist() == [[10, 10, 50, 30], [0, 0, 13, 40]]
        level = int(sample.image[0, 0, 0])
        assert (sample.image[:, :13] == level).all()
        share = 2 - level / 100
        shares.append(share)
        beside = share * 100 + (1 - share) * np.array(FILL)
        assert np.abs(sample.image[:, 13:] - beside).max() <= 1
    # Beta(1.5, 1.5): mean 1/2, variance 1/16.
    assert 0 <= min(shares) < 0.1
    np.testing.assert_allclose(np.mean(shares), 0.5, atol=0.05)
    np.testing.assert_allclose(np.var(shares), 1 / 16, atol=0.01)


def test_mix_sources_must_be_as_many_as_are_mixed():
    main = source(flat(4, 4, 0))
    with pytest.raises(ValueError, match="1 mix sources, but mosaic=True and mixup=True need 4"):
        run(Augmenter(), main, [main], mosaic=True, mixup=True)
    with pytest.raises(ValueError, match="need 0"):
        run(Augmenter(), main, [main])


# Draws


def pictures(num: int = 5, size: int = 48) -> list[LazyImage]:
    images = np.random.default_rng(7).integers(0, 256, (num, size, size, 3), np.uint8)
    boxes = [[4, 8, 30, 40], [20, 2, 44, 20]]
    return [source(image, boxes, [2 * i, 2 * i + 1]) for i, image in enumerate(images)]


def test_the_same_generator_gives_the_same_bytes():
    results = []
    for mosaic, mixup in [(False, False), (True, False), (False, True), (True, True)]:
        main, *partners = pictures(1 + 3 * mosaic + mixup)
        for seed in range(5):
            options = {"mosaic": mosaic, "mixup": mixup, "seed": seed}
            sample = run(EVERYTHING, main, partners, **options)
            np.random.seed(seed)  # nothing global is drawn from
            again = run(pickle.loads(pickle.dumps(EVERYTHING)), main, partners, **options)
            assert_same(sample, again)
            results.append(sample.image.tobytes())
    assert len(set(results)) == len(results)


def test_one_change_does_not_move_the_draws_of_another():
    main = source(flat(50, 50, 100), [[10, 20, 30, 40]])
    jitter, colour = (0.5, 1.0), ColourJitter(brightness=0.5)
    for seed in range(30):
        alone = run(Augmenter(scale_jitter=jitter), main, seed=seed)
        side = alone.boxes[0, 2] - alone.boxes[0, 0]
        level = run(Augmenter(colour=colour), main, seed=seed).image[0, 0, 0]
        turned = Augmenter(rotate_90=True, scale_jitter=jitter, colour=colour, flip="both")
        sample = run(turned, main, seed=seed)
        assert sample.boxes[0, 2] - sample.boxes[0, 0] == pytest.approx(side, abs=1e-4)
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        assert sample.image[(y0 + y1) // 2, (x0 + x1) // 2, 0] == level
        # A mosaic leaves mixup's share and partner as they were.
        black, partner = source(flat(48, 48, 0)), pictures(1)[0]
        mixed = run(Augmenter(flip="both"), black, [partner], mixup=True, seed=seed)
        mosaic = Augmenter(flip="both", mosaic_scale=(9, 9))
        partners = [black] * 3 + [partner]
        both = run(mosaic, black, partners, mosaic=True, mixup=True, seed=seed)
        np.testing.assert_array_equal(mixed.image, both.image)


def test_no_stream_serves_two_purposes(monkeypatch):
    streams = []

    def recorded(*parts: int) -> np.random.Generator:
        streams.append(parts)
        return random_stream(*parts)

    monkeypatch.setattr(augment, "random_stream", recorded)
    main, *partners = pictures()
    run(EVERYTHING, main, partners, mosaic=True, mixup=True)
    run(EVERYTHING, main, seed=1)
    assert len(set(streams)) == len(streams)


def test_pictures_flip_independently():
    picture = flat(20, 20, 0)
    picture[:, :10] = 255
    main = source(picture)
    sides = []
    for seed in range(200):
        augmenter = Augmenter(flip="horizontal", mosaic_scale=(0.2, 0.2))
        sample = run(augmenter, main, [main] * 3, mosaic=True, seed=seed)
        image = sample.image[..., 0].astype(int)
        ys, xs = np.nonzero((image == 255) | (image == 0))
        block = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert block.shape == (8, 8)
        sides.append([block[y, x] == 255 for y in (0, 4) for x in (0, 4)])
    joint = np.corrcoef(np.array(sides).T)
    np.testing.assert_allclose(np.mean(sides, axis=0), 0.5, atol=0.12)
    np.testing.assert_allclose(joint, np.eye(4), atol=0.25)


# Decoding


def asked(augmenter: Augmenter, seed: int = 0, **options) -> list[int]:
    """The shorter sides that pictures of 480 x 640 are decoded for, to be shown at 120 x 160."""
    sides = []

    def decode(min_shorter_side: int) -> np.ndarray:
        sides.append(min_shorter_side)
        return flat(480, 640, 0)

    picture = LazyImage(decode, (480, 640), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    partners = [picture] * (3 * options.get("mosaic", False) + options.get("mixup", False))
    run(augmenter, picture, partners, size_px=120, seed=seed, **options)
    return sides


def test_no_more_is_decoded_than_is_shown():
    assert asked(Augmenter()) == [120]
    assert asked(Augmenter(rotate_90=True)) == [120]
    assert asked(Augmenter(scale_jitter=(2.0, 2.0))) == [240]
    assert asked(Augmenter(scale_jitter=(0.5, 0.5))) == [60]
    assert asked(Augmenter(mosaic_scale=(0.5, 0.5)), mosaic=True) == [60] * 4
    assert asked(Augmenter(), mixup=True) == [120, 120]
    for seed in range(20):
        # Half of each side or more is shown on 120 pixels or more.
        (side,) = asked(Augmenter(crop_prob=1.0, crop_min_scale=0.5), seed)
        assert 120 <= side <= 240


def test_paint_is_found_after_reduced_decoding():
    height, width = 402, 614  # neither is a multiple of 4 or 8
    picture = np.zeros((height, width, 3), np.uint8)
    picture[300:402, 500:614] = 255  # down to the corner, where a shift would be largest
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    decoded = []

    def decode(min_shorter_side: int) -> np.ndarray:
        decoded.append(decode_image(data, min_shorter_side=min_shorter_side))
        return decoded[-1]

    boxes = np.array([[500, 300, 614, 402]], np.float32)
    main = LazyImage(decode, (height, width), boxes, np.zeros(1, np.int32))
    for augmenter in (
        Augmenter(),
        Augmenter(rotate_90=True, crop_prob=1.0, crop_min_scale=0.8, flip="both"),
        Augmenter(rotate_90=True, scale_jitter=(0.8, 1.2), flip="both"),
    ):
        for seed in range(10):
            sample = run(augmenter, main, size_px=95, max_size_px=200, seed=seed)
            ground = (sample.image == FILL).all(axis=2)
            bright = np.argwhere((sample.image[..., 0] > 127) & ~ground)
            if len(sample.boxes) == 0:
                continue
            low, high = bright.min(axis=0), bright.max(axis=0) + 1
            found = [low[1], low[0], high[1], high[0]]
            np.testing.assert_allclose(found, sample.boxes[0], atol=1)
    assert {image.shape[0] for image in decoded} == {101, 201}


# Rotated boxes


def test_rotated_boxes_are_not_cut_and_small_ones_are_dropped():
    boxes = [
        [-10, 50, 60, 20, 30],  # its centre is outside
        [120, 90, 80, 60, -45],  # sticks out
        [50, 50, 40, 1.9, 10],  # 0.95 px high after halving
        [50, 50, 40, 2.0, 10],
        [50, 50, 0, 20, 10],
        [50, 50, 20, 20, np.nan],
        [np.inf, 50, 20, 20, 0],
    ]
    sample = run(Augmenter(), source(flat(96, 128, 0), boxes), size_px=48)
    assert sample.labels.tolist() == [0, 1, 3]
    halved = np.float32([boxes[i] for i in (0, 1, 3)]) * np.float32([0.5] * 4 + [1])
    np.testing.assert_array_equal(sample.boxes, halved)
    larger = Augmenter(scale_jitter=(2.0, 2.0), min_visible=0.5)
    for seed in range(100):
        sample = run(larger, source(flat(40, 60, 7), [[10, 10, 16, 4, 45]]), seed=seed)
        for x, y, *rest in sample.boxes.tolist():
            assert rest == [32, 8, 45]
            assert 0 <= x <= 20
            assert 0 <= y <= 20


# Settings


def test_from_config_reads_every_setting():
    changes = {
        "rotate_90": True,
        "crop_prob": 0.25,
        "crop_min_ious": (0.2, 0.4),
        "crop_min_scale": 0.6,
        "scale_jitter": (0.2, 1.7),
        "min_visible": 0.35,
        "brightness": 0.11,
        "contrast": 0.12,
        "saturation": 0.13,
        "hue": 0.14,
        "mixup_alpha": 3.0,
    }
    config = InputConfig(flip="both", min_box_size_px=2.5, augment=AugmentConfig(**changes))
    found = Augmenter.from_config(config)
    assert found.flip == "both"
    assert found.min_box_size_px == 2.5
    for name, value in changes.items():
        owner = found if hasattr(found, name) else found.colour
        assert getattr(owner, name) == value
    default = Augmenter.from_config(InputConfig())
    assert default == Augmenter(flip="horizontal")
    assert not default.colour
