"""What several chapters draw with."""

import matplotlib.pyplot as plt
import numpy as np

from ersm_lab.views.figures import bare, beside


def test_pictures_stand_beside_each_other_with_gaps_between_them_only():
    one, two = np.zeros((4, 3, 3), np.uint8), np.full((4, 5, 3), 9, np.uint8)
    row = beside([one, two], axis=1, gap=2, grey=200)
    assert row.shape == (4, 10, 3) and (row[:, 3:5] == 200).all() and (row[:, 5:] == 9).all()
    assert beside([one, one, one], axis=0, gap=1).shape == (14, 3, 3)
    assert (beside([one], axis=0) == one).all()


def test_an_axis_with_a_picture_has_no_frame():
    figure, axis = plt.subplots()
    bare(axis)
    assert not axis.get_xticks().size and not axis.spines["left"].get_visible()
    plt.close(figure)
