"""Defects: small parts of images are found, in images of any size, and shown where they are."""

import numpy as np
import pytest
from PIL import Image

from flaxae import anomaly, data
from flaxae.anomaly import findings, local, tiles
from flaxae.anomaly.findings import Rule
from flaxae.data import images
from flaxae.errors import ConfigError, DataError


def parts(count: int, seed: int, *, side: int = 48, defects: bool = False) -> np.ndarray:
    """Images of one disc at nearly one place, under nearly one light, with or without a small dark spot."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    made = []
    for _ in range(count):
        top, left = side / 2 + rng.normal(size=2)
        image = 0.3 + 0.4 * (np.hypot(y - top, x - left) < side / 4) + rng.normal(0, 0.02, (side, side))
        image *= rng.uniform(0.9, 1.1)
        if defects:
            image[8:12, 30:36] -= 0.2
        made.append(np.clip(image, 0, 1))
    return np.stack(made).astype(np.float32)[..., None]


@pytest.fixture(scope="module")
def detector() -> anomaly.Detector:
    return anomaly.fit(parts(80, 0), kind="image", epochs=2)


def test_a_defect_is_found_where_it_is(detector):
    normal, strange = parts(20, 1), parts(20, 2, defects=True)
    assert detector.score(strange).min() > detector.score(normal).max()
    heat = detector.heat(strange)
    assert heat.shape == (20, 48, 48)
    level = detector.heat_level(0.05)
    assert (detector.heat(normal).max(axis=(1, 2)) <= level).mean() > 0.8
    for one in heat:
        box = local.regions(one, level, 1)[0]
        assert abs(box.x + box.width / 2 - 33) < 4
        assert abs(box.y + box.height / 2 - 10) < 4


def test_heat_is_about_one_where_all_is_usual(detector):
    assert detector.heat(parts(20, 3)).mean() == pytest.approx(1, abs=0.3)


def test_small_images_are_scored_as_a_whole(digits):
    of_digits = anomaly.fit(digits[:100], kind="image", epochs=1)
    assert of_digits.local is None
    with pytest.raises(ConfigError, match="no heat maps"):
        of_digits.heat(digits[:2])
    np.testing.assert_allclose(tiles.heat_of(of_digits, digits[:5]).mean(axis=(1, 2)), 1, atol=1e-4)


def test_a_saved_detector_has_the_same_heat(detector, tmp_path):
    detector.save(tmp_path / "detector")
    loaded = anomaly.load(tmp_path / "detector")
    x = parts(3, 4, defects=True)
    np.testing.assert_allclose(loaded.heat(x), detector.heat(x), rtol=1e-4)
    np.testing.assert_allclose(loaded.score(x), detector.score(x), rtol=1e-4)
    assert loaded.heat_level(0.1) == pytest.approx(detector.heat_level(0.1))


def test_images_of_any_size_in_tiles(detector, tmp_path):
    large = np.tile(parts(1, 5)[0], (2, 3, 1))
    large[60:64, 80:86] -= 0.2
    Image.fromarray(np.rint(255 * large[..., 0]).astype(np.uint8)).save(tmp_path / "large.png")
    small = parts(1, 6)[0, 4:44, 4:44, 0]
    Image.fromarray(np.rint(255 * small).astype(np.uint8)).save(tmp_path / "small.png")
    looked = list(tiles.look(detector, images.open(tmp_path)))
    assert [heat.shape for *_, heat in looked] == [(96, 144), (40, 40)]
    calibrated = tiles.calibrated(detector, images.open(tmp_path))
    np.testing.assert_allclose(calibrated.calibration, sorted(score for _, _, score, _ in looked), rtol=1e-5)
    assert len(calibrated.peaks) == 2


def test_files_boxes_and_maps(detector, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for name, image in {"good": parts(1, 7)[0], "bad": parts(1, 8, defects=True)[0]}.items():
        Image.fromarray(np.rint(255 * image[..., 0]).astype(np.uint8)).save(given / f"{name}.jpg", quality=100)
    (given / "cut.jpg").write_bytes((given / "bad.jpg").read_bytes()[:600])
    found_images = images.open(given)
    found, hottest = findings.in_images(detector, found_images, Rule("conformal", 0.1), tmp_path / "maps")
    assert list(found.which["file"]) == ["bad.jpg", "good.jpg"]
    assert found.flagged.tolist() == [True, False]
    assert found_images.names[hottest[0][0]] == "bad.jpg"
    found.write(tmp_path / "anomalies.csv")
    head, first, _ = (tmp_path / "anomalies.csv").read_text().splitlines()
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert row["file"] == "bad.jpg"
    assert abs(int(row["x_1"]) + int(row["width_1"]) / 2 - 33) < 4
    assert row["top_1"].startswith("x ")
    with Image.open(tmp_path / "maps" / "bad.jpg.png") as heat:
        values = np.asarray(heat).astype(int)
    assert values.shape == (48, 48)
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert abs(y - 10) < 4
    assert abs(x - 33) < 6
    with pytest.raises(DataError, match=r"cut\.jpg"):
        found_images.check()


def test_regions_are_connected_and_the_largest_first():
    heat = np.zeros((20, 30))
    heat[2:4, 5:10], heat[10:16, 20:24], heat[18, 1] = 9, 8, 3
    first, second = local.regions(heat, 5.0, 5)
    assert first[:4] == (20, 10, 4, 6)
    assert second[:4] == (5, 2, 5, 2)
    assert first.share + second.share == pytest.approx(1, abs=0.02)
    assert str(second) == "x 5–9 y 2–3"
    assert local.regions(np.ones((4, 4)), np.inf, 1)[0][:4] == (0, 0, 4, 4)


def test_findings_of_small_images_are_regions(digits):
    of_digits = anomaly.fit(digits[:100], kind="image", epochs=1)
    found = findings.find(of_digits, digits[100:104], np.arange(4), data.load(digits), Rule("conformal", 0.2))
    assert found.boxes.shape == (4, 3, 4)
    assert all(name.startswith("x ") for name in found.contributors[:, 0])
