import numpy as np
import pytest
import torch

from retrieval.integration import learn_integration

WIDTHS = (12, 7)


def features(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, sum(WIDTHS), generator=torch.Generator().manual_seed(seed)) ** 3


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_it_is_half_whitened_pca_as_numpys_svd_gives_it(power: float) -> None:
    train, new = features(80), features(9, seed=1)
    integration = learn_integration(train, WIDTHS, 6, power, rows_per_block=13)

    def levelled(rows: torch.Tensor) -> np.ndarray:
        values = rows.double().numpy() ** power
        parts = [values[:, :12], values[:, 12:]]
        return np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts])

    mean = levelled(train).mean(0)
    _, singular, directions = np.linalg.svd(levelled(train) - mean, full_matrices=False)
    variances = singular**2 / (len(train) - 1)
    expected = (levelled(new) - mean) @ directions[:6].T / variances[:6] ** 0.25
    found = integration(new).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    for column in range(6):  # the same up to the sign of each direction
        assert abs(np.corrcoef(found[:, column], expected[:, column])[0, 1]) == pytest.approx(1, abs=1e-6)


def test_components_have_the_root_of_their_variance() -> None:
    train = features(200)
    integration = learn_integration(train, WIDTHS, sum(WIDTHS))
    covariance = torch.cov(integration(train).double().T)
    spread = covariance.diagonal()
    torch.testing.assert_close(covariance, torch.diag(spread), atol=1e-6, rtol=0)
    assert (spread.diff() <= 1e-9).all()  # strongest first


def test_blocks_and_repetition_do_not_change_it() -> None:
    one, two = (learn_integration(features(50), WIDTHS, 5, rows_per_block=rows) for rows in (50, 50))
    other = learn_integration(features(50), WIDTHS, 5, rows_per_block=7)
    assert torch.equal(one.projection, two.projection)
    torch.testing.assert_close(one.projection, other.projection)


def test_few_images_or_features_give_fewer_dimensions() -> None:
    assert learn_integration(features(5), WIDTHS, 16).projection.shape == (19, 4)
    assert learn_integration(features(100), WIDTHS, 256).projection.shape[1] <= 19


@pytest.mark.parametrize(
    ("pooled", "message"),
    [
        (features(1), "1 training images"),
        (torch.ones(6, sum(WIDTHS)), "the same features"),
        (features(6).fill_diagonal_(torch.nan), "not finite"),
    ],
)
def test_what_has_no_variance_is_refused(pooled: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn_integration(pooled, WIDTHS, 4)
