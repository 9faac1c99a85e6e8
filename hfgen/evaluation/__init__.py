"""How good generated samples are: metrics of sets of feature vectors, and the embeddings that make the vectors."""

from ..data.stacked import joint_labels
from .distances import knn_radii, nearest, pairwise_distances
from .features import FeatureModel, load_feature_model
from .frechet import frechet_distance
from .kernel import kernel_distance
from .manifold import coverage, manifold_metrics
from .modes import mode_statistics, near_centres
from .neighbours import memorisation, neighbour_figure
from .report import classes, embed, evaluate_features, evaluate_samples, nearest_training

__all__ = [
    "FeatureModel",
    "classes",
    "coverage",
    "embed",
    "evaluate_features",
    "evaluate_samples",
    "frechet_distance",
    "joint_labels",
    "kernel_distance",
    "knn_radii",
    "load_feature_model",
    "manifold_metrics",
    "memorisation",
    "mode_statistics",
    "near_centres",
    "nearest",
    "nearest_training",
    "neighbour_figure",
    "pairwise_distances",
]
