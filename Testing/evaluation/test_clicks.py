"""The simulated clinician."""

import numpy as np
import pytest
from scipy import ndimage

from SegMoTELib.evaluation.clicks import (
    MAX_PIECES,
    Click,
    corrective_click,
    first_click,
    number_of_clicks,
    piece_boxes,
    simulate_clicks,
    tight_box,
)


def mask_with(*boxes):
    mask = np.zeros((40, 50), bool)
    for y0, y1, x0, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def test_first_click_is_the_point_farthest_from_the_border():
    assert first_click(mask_with((4, 15, 20, 31), (30, 33, 5, 45))) == Click(x=25, y=9, label=1)


def test_first_click_keeps_away_from_the_edge_of_the_image():
    assert first_click(mask_with((0, 9, 0, 50))).y == 4


def test_first_click_stays_inside_a_ring():
    ring = mask_with((5, 35, 5, 35)) & ~mask_with((10, 30, 10, 30))
    click = first_click(ring)
    assert ring[click.y, click.x]


def test_an_empty_target_cannot_be_clicked():
    with pytest.raises(ValueError, match="empty"):
        first_click(mask_with())
    with pytest.raises(ValueError, match="empty"):
        tight_box(mask_with())


def test_correction_adds_the_largest_missed_part():
    truth = mask_with((5, 16, 5, 16), (20, 27, 30, 37))
    assert corrective_click(truth, mask_with((20, 27, 30, 37))) == Click(10, 10, 1)


def test_correction_removes_the_largest_false_part():
    truth = mask_with((5, 16, 5, 16))
    assert corrective_click(truth, mask_with((5, 16, 5, 16), (20, 31, 30, 41))) == Click(35, 25, 0)


def test_of_two_equal_errors_the_missed_one_is_clicked():
    assert corrective_click(mask_with((20, 25, 20, 25)), mask_with((5, 10, 5, 10))).label == 1


def test_no_click_where_there_is_no_error():
    assert corrective_click(mask_with((5, 9, 5, 9)), mask_with((5, 9, 5, 9))) is None


def test_a_pixel_is_not_clicked_twice():
    truth, empty, taken = mask_with((5, 8, 5, 8)), mask_with(), ()
    for _ in range(9):
        click = corrective_click(truth, empty, taken)
        assert click not in taken
        taken += (click,)
    assert corrective_click(truth, empty, taken) is None


def test_every_piece_that_is_large_enough_gets_a_box_the_largest_first():
    pieces = [(4, 9, 20, 31), (12, 16, 3, 7), (0, 2, 0, 2)]
    assert piece_boxes(mask_with(*pieces)) == [(20, 4, 30, 8), (3, 12, 6, 15)]
    assert piece_boxes(mask_with((4, 8, 4, 8), (8, 12, 8, 12))) == [(4, 4, 11, 11)]  # touching corners are one piece
    many = mask_with(*((4 * k, 4 * k + 4, 6 * (k % 4), 6 * (k % 4) + 4) for k in range(8)))
    assert len(piece_boxes(many)) == MAX_PIECES


def test_a_target_of_specks_gets_a_box_around_the_largest():
    assert piece_boxes(mask_with((4, 6, 20, 23), (10, 12, 3, 5))) == [(20, 4, 22, 5)]
    with pytest.raises(ValueError, match="empty target"):
        piece_boxes(mask_with())


def test_box_holds_the_extreme_pixels():
    assert tight_box(mask_with((4, 9, 20, 31), (7, 12, 3, 6))) == (3, 4, 30, 11)


def reveal_one_row_per_click(truth):
    def segment(clicks, state):
        shown = (state or 0) + 1
        mask = truth.copy()
        mask[5 + shown:] = False
        return mask, shown
    return segment


def test_clicks_and_state_are_handed_on():
    truth = mask_with((5, 15, 5, 15))
    steps = simulate_clicks(reveal_one_row_per_click(truth), truth, most=4, least=1, enough=2.0)
    assert [len(step.clicks) for step in steps] == [1, 2, 3, 4]
    assert [step.mask.sum() for step in steps] == [10, 20, 30, 40]
    assert steps[-1].clicks[:3] == steps[2].clicks


def test_clicking_stops_when_the_mask_is_good_enough_but_not_before_the_least():
    truth = mask_with((5, 15, 5, 15))
    assert len(simulate_clicks(reveal_one_row_per_click(truth), truth, most=10, least=1, enough=0.5)) == 4
    assert len(simulate_clicks(reveal_one_row_per_click(truth), truth, most=10, least=6, enough=0.5)) == 6
    assert len(simulate_clicks(lambda clicks, state: (truth, None), truth, most=10, least=5, enough=0.5)) == 1


def test_number_of_clicks_is_capped_where_the_goal_is_missed():
    truth = mask_with((5, 15, 5, 15))
    steps = simulate_clicks(reveal_one_row_per_click(truth), truth, most=6, least=6, enough=2.0)
    assert number_of_clicks(steps, 0.5, cap=6) == (4, True)
    assert number_of_clicks(steps, 0.9, cap=6) == (6, False)


def test_where_the_errors_lie_in_the_image_does_not_matter():
    rng = np.random.default_rng(0)
    truth, found = (ndimage.gaussian_filter(rng.normal(size=(40, 50)), 3) > 0 for _ in range(2))
    alone = corrective_click(truth, found, (Click(5, 6, 1),))
    placed = corrective_click(*(np.pad(mask, ((30, 4), (7, 60))) for mask in (truth, found)), (Click(12, 36, 1),))
    assert placed == Click(alone.x + 7, alone.y + 30, alone.label)
