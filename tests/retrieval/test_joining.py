import pytest
import torch

from retrieval.joining import join
from retrieval.models import ModelConfig, build_network
from retrieval.refinement import Refinement


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_cosine_is_the_mean_of_both_cosines_by_their_shares(share: float) -> None:
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn((2, 5), generator=random), 9 * torch.randn((2, 3), generator=random)
    first, second = join(left, right, share)
    own, others = torch.cosine_similarity(*left, dim=0), torch.cosine_similarity(*right, dim=0)
    torch.testing.assert_close(first @ second, (1 - share) * own + share * others)
    torch.testing.assert_close(first.norm(), torch.tensor(1.0))


def test_what_is_joined_is_joined_once_and_before_it_is_refined() -> None:
    network, other = (build_network(ModelConfig(image_size=8, dimension=d, channels=(4, 4, 8))) for d in (6, 5))
    joined = network.joined_with(other, 0.5)
    assert joined.dimension == 11
    assert network.dimension == 6, "the network itself stays as it is"
    refined = joined.refined(Refinement(11, 11, 3, 0.2))
    assert refined.joined is other
    for model in (joined, refined):
        with pytest.raises(ValueError, match="join the network as it was trained"):
            model.joined_with(other, 0.5)


def test_networks_for_images_of_other_sizes_are_not_joined() -> None:
    with pytest.raises(ValueError, match="takes images of 16 px"):
        ModelConfig(image_size=8, joined=ModelConfig(image_size=16), joined_share=0.5)
