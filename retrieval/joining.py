"""An embedding joined with the features of another network: one vector, whose cosine is a mean of both cosines."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

SHARES = (0.25, 0.5, 0.75)  # of the features, tried by "auto"


def join(embeddings: Tensor, features: Tensor, share: float) -> Tensor:
    """Lay features beside embeddings so that cos = (1 - share) cos(embeddings) + share cos(features).

    A small network and the classifier that it was drawn to err on different images. Laid end to end as they come, the
    longer one would decide; of length 1 and weighted by the roots of their shares, each has its say.

    Args:
        embeddings: (b, d) float, any scale.
        features: (b, e) float, any scale.
        share: of the features, from 0 to 1.

    Returns:
        (b, d + e) float32 of length 1.
    """
    own = (1 - share) ** 0.5 * normalize(embeddings.float(), dim=1)
    return torch.cat([own, share**0.5 * normalize(features.float(), dim=1)], dim=1)
