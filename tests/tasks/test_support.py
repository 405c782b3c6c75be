"""A user's images and labels become a support set, or are refused."""

import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.tasks import support
from tests.annotations import unchecked


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros(4), None, "shape"),
        (np.full((2, 4), 255.0), None, "pixels from 255 to 255; allowed: from 0 to 1"),
        (np.full((2, 3, 3), 0.5), None, r"shape .2, 3, 3.; allowed: .images, 4., all finite"),
        (np.zeros((0, 4)), None, "shape"),
        (np.full((2, 4), np.nan), None, "finite"),
        (np.zeros((2, 4)), np.array([0]), "labels"),
        (np.zeros((2, 4)), np.array([0, 3]), "from 0 to 2"),
        (np.zeros((2, 4)), np.array([0.0, 1.0]), "labels of shape .2,., float64 from 0.0 to 1.0, for 2 images"),
        (np.zeros((2, 4)), np.array(["a", "b"]), "labels of shape"),
        (np.zeros((2, 4)), np.array([], int), "labels of shape .0,., int64, for 2 images"),
        (np.zeros((99, 4)), np.arange(-2, 97), "labels of shape .99,., int64 from -2 to 96, for 99 images"),
        (np.zeros((2, 5)), None, "images of 5 numbers; allowed: 4"),
    ],
)
def test_bad_images_and_labels_are_refused(images, labels, message):
    with unchecked(), pytest.raises(PdiffError, match=message) as error:
        support.of_images(images, labels, 3, 4)
    assert "\n" not in str(error.value)


def test_images_that_are_not_flat_are_made_so():
    made = support.of_images(np.arange(8).reshape(2, 2, 2) / 8, [0, 2], 3, 4)
    assert made.x.tolist() == [[[0, 0.125, 0.25, 0.375], [0.5, 0.625, 0.75, 0.875]]] and made.y.tolist() == [[0, 2]]
