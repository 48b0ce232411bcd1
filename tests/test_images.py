"""Images in folders, one a class: what is read, in which order, and what is refused."""

import csv

import numpy as np
import pytest
import torch
from commands import onward

import onward as ow
from onward.data import images
from onward.data.catalog import row_shape
from onward.errors import DataError

Image = pytest.importorskip("PIL.Image")

CLASSES = ("cat", "dog")


def pixels(number, channels=1, size=(4, 6)):
    """Pixels of an image, of which every number has others."""
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def written(folder, each=5, **options):
    """Write some images of each class, and return all in the order in which they are read."""
    found = []
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            own = pixels(100 * label + number, **options)
            Image.fromarray(own).save(folder / name / f"{number}.png")
            found.append(own)
    return found


def whole(dataset):
    """Return all samples beside the names of their classes, sorted."""
    x, y = torch.cat([dataset.x, dataset.x_test]), torch.cat([dataset.y, dataset.y_test])
    names = [dataset.class_names[label] for label in y]
    return sorted(zip(map(bytes, x.numpy()), names, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_for_each_class_is_read(channels, tmp_path):
    own = written(tmp_path, channels=channels)

    dataset = ow.load_data(str(tmp_path))

    first = [each[None] if channels == 1 else each.transpose(2, 0, 1) for each in own]
    names = np.repeat(CLASSES, 5)
    assert whole(dataset) == sorted(
        (each.tobytes(), n) for each, n in zip(first, names, strict=True)
    )
    assert dataset.input_shape == (channels, 4, 6)
    assert dataset.x.dtype == torch.uint8
    assert dataset.is_image
    assert dataset.class_names == CLASSES


def test_grey_images_among_others_have_three_channels(tmp_path):
    written(tmp_path, channels=3)
    Image.fromarray(pixels(1)).save(tmp_path / "cat" / "grey.png")

    dataset = ow.load_data(str(tmp_path))

    assert dataset.input_shape == (3, 4, 6)
    grey = np.repeat(pixels(1)[None], 3, axis=0).tobytes()
    assert (grey, "cat") in whole(dataset)


def test_folders_of_parts_are_kept_apart(tmp_path):
    own = {part: written(tmp_path / part, each) for part, each in (("train", 3), ("Test", 2))}
    written(tmp_path / "val", 1)

    dataset = ow.load_data(str(tmp_path))

    assert torch.equal(dataset.x[:, 0], torch.from_numpy(np.stack(own["train"])))
    assert torch.equal(dataset.x_test[:, 0], torch.from_numpy(np.stack(own["Test"])))
    assert len(dataset.validation) == 2
    assert dataset.y_test.tolist() == [0, 0, 1, 1]


def test_classes_may_have_the_names_of_parts(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(pixels(number)).save(tmp_path / name / f"{number}.png")

    assert ow.load_data(str(tmp_path)).class_names == ("test", "train")


@pytest.mark.parametrize(
    "folders", [("train", "test", "extra"), ("test", "val"), ("training_set", "test_set")]
)
def test_folders_of_folders_with_other_names_are_refused(folders, tmp_path):
    for name in folders:
        written(tmp_path / name, 2)

    with pytest.raises(
        DataError, match=r"has the folders .*, and folders inside\. Give a folder wi"
    ):
        ow.load_data(str(tmp_path))


def test_test_images_without_classes_are_refused(tmp_path):
    written(tmp_path / "train", 2)
    (tmp_path / "test").mkdir()
    Image.fromarray(pixels(1)).save(tmp_path / "test" / "1.png")

    with pytest.raises(DataError, match="has the folders test, train, and folders inside"):
        ow.load_data(str(tmp_path))


def test_folders_that_programs_make_for_themselves_are_no_classes(tmp_path):
    written(tmp_path)
    for name in ("__MACOSX", ".thumbnails"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.bin").write_text("")

    assert ow.load_data(str(tmp_path)).class_names == CLASSES


def test_photos_are_turned_as_their_camera_says(tmp_path):
    upright = pixels(1, channels=3)
    for number in range(4):
        (tmp_path / CLASSES[number % 2]).mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # The camera was turned: samples are columns.
        lying = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
        lying.save(tmp_path / CLASSES[number % 2] / f"{number}.png", exif=exif)

    dataset = ow.load_data(str(tmp_path))

    assert torch.equal(dataset.x[0], torch.from_numpy(upright.transpose(2, 0, 1)))


def test_what_is_transparent_is_white(tmp_path):
    written(tmp_path, channels=3)
    clear = np.dstack([pixels(1, channels=3), np.zeros((4, 6), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "cat" / "clear.png")

    dataset = ow.load_data(str(tmp_path))

    assert (np.full((3, 4, 6), 255, np.uint8).tobytes(), "cat") in whole(dataset)


def test_moving_images_are_refused(tmp_path):
    written(tmp_path)
    first, second = (Image.fromarray(pixels(n)) for n in range(2))
    first.save(tmp_path / "cat" / "z.gif", save_all=True, append_images=[second])

    with pytest.raises(DataError, match=r"z\.gif has 2 frames\. Save each as an image of its own"):
        ow.load_data(str(tmp_path))


def test_images_in_colour_get_the_recipe_for_them(tmp_path):
    written(tmp_path / "rgb", channels=3)
    written(tmp_path / "grey")

    assert row_shape(str(tmp_path / "rgb")) == (3, 4, 6)
    assert row_shape(str(tmp_path / "grey")) == (1, 4, 6)
    assert row_shape(str(tmp_path)) is None
    assert row_shape("") is None


def test_what_is_no_image_is_left_out_with_a_warning(tmp_path):
    written(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("seen at night")
    (tmp_path / "cat" / ".hidden").write_text("")

    with pytest.warns(
        ow.OnwardWarning, match=r"A file in .* is no image, and is left out, such as .*notes\.txt"
    ):
        dataset = ow.load_data(str(tmp_path))

    assert dataset.num_samples + len(dataset.x_test) == 10


def test_images_of_several_sizes_are_refused(tmp_path):
    written(tmp_path)
    Image.fromarray(pixels(1, size=(5, 6))).save(tmp_path / "dog" / "z.png")

    with pytest.raises(DataError) as refused:
        ow.load_data(str(tmp_path))

    assert "z.png has 6 x 5 pixels, and" in str(refused.value)
    assert "has 6 x 4. Give all images the same size, as image.resize((6, 4))" in str(refused.value)


def damaged(path):
    path.write_bytes(path.read_bytes()[:40])


def deep(path):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path)


def large(path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "0.png cannot be read as an image: "),
        (deep, "0.png has more than eight bits a pixel (mode I;16 of pillow)"),
        (large, "0.png has 9 x 9 pixels, more than the 50 that are taken"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_by_name(spoil, message, tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setattr(images, "MOST_PIXELS", 50)
    spoil(tmp_path / "cat" / "0.png")

    with pytest.raises(DataError) as refused:
        ow.load_data(str(tmp_path))

    assert message in str(refused.value)


def test_more_images_than_the_memory_holds_are_refused(tmp_path, monkeypatch):
    written(tmp_path)
    memory = type("Memory", (), {"total": 100})
    monkeypatch.setattr(images.psutil, "virtual_memory", lambda: memory)

    with pytest.raises(DataError, match="10 images of 6 x 4 pixels take"):
        ow.load_data(str(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no folders inside"):
        ow.load_data(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="cat has no images: no files that end in"):
        ow.load_data(str(tmp_path))


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)

    with pytest.raises(DataError, match=r'pip install "onward\[images\]"'):
        ow.load_data(str(tmp_path))


def test_images_are_trained_on_and_predicted_with_their_names(tmp_path, capsys):
    written(tmp_path / "photos", 20)
    flags = ("--epochs", 1, "--widths", "8,8", "--batch-size", 8, "--out", tmp_path / "r")
    assert onward("train", "one-pass", "--data", tmp_path / "photos", *flags) == 0
    capsys.readouterr()

    assert onward("predict", tmp_path / "r", tmp_path / "photos" / "cat") == 0
    header, *samples = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["file", "label", "score_cat", "score_dog"]
    assert sorted(row[0] for row in samples) == sorted(f"{n}.png" for n in range(20))

    # Shades of grey in three channels are still shades of grey.
    grey = Image.fromarray(pixels(3)).convert("RGB")
    grey.save(tmp_path / "one.png")
    assert onward("predict", tmp_path / "r", tmp_path / "one.png") == 0
    _, row = csv.reader(capsys.readouterr().out.splitlines())
    assert row[1:] == next(own for own in samples if own[0] == "3.png")[1:]

    Image.fromarray(pixels(3, channels=3)).save(tmp_path / "colours.png")
    assert onward("predict", tmp_path / "r", tmp_path / "colours.png") == 2
    assert "colours.png has colours, and shades of grey are needed" in capsys.readouterr().err

    assert onward("predict", tmp_path / "r", tmp_path / "one.png", "--out", tmp_path / "o.npz") == 0
    assert np.load(tmp_path / "o.npz")["files"].tolist() == ["one.png"]
