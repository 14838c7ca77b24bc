"""The softmax layer over the classes, as an objective of the training loop."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm


class ClassLayer(nn.Module):
    """A linear layer from features to classes and its cross-entropy, labels smoothed (Szegedy et al., CVPR 2016).

    The features of an image are brought to mean 0 and deviation 1 first (Ba et al. 2016): those of trained networks
    differ a hundredfold in size, and at a rate that suits one the layer diverges on another.
    """

    def __init__(self, features: int, classes: int, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.logits = nn.Linear(features, classes)

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of a batch: outputs (b, features), labels (b,) int64 in 0..classes-1; positions are not used."""
        standardised = layer_norm(outputs, outputs.shape[1:])
        return cross_entropy(self.logits(standardised), labels, label_smoothing=self.label_smoothing)
