"""Losses of pytorch-metric-learning whose value and gradient come from the B × B matrix of distances.

Each is a subclass of the library's, of the same name and options, and most are that itself where a miner chose
triplets. The pairs that a miner chose become masks over the matrix.
"""

from __future__ import annotations

from pytorch_metric_learning.losses import BaseMetricLossFunction

from training.losses.matrix.angular import AngularLoss
from training.losses.matrix.contrastive import ContrastiveLoss, SignalToNoiseRatioContrastiveLoss
from training.losses.matrix.histogram import HistogramLoss
from training.losses.matrix.lifted_structure import LiftedStructureLoss
from training.losses.matrix.margin import MarginLoss
from training.losses.matrix.ntxent import NTXentLoss
from training.losses.matrix.pairs import MatrixForm, PairMasks
from training.losses.matrix.pnp import PNPLoss
from training.losses.matrix.rows import CircleLoss, GeneralizedLiftedStructureLoss, MultiSimilarityLoss, SupConLoss
from training.losses.matrix.smooth_ap import SmoothAPLoss
from training.losses.matrix.threshold_consistent_margin import ThresholdConsistentMarginLoss
from training.losses.matrix.triplet_margin import TripletMarginLoss
from training.losses.matrix.tuplet_margin import TupletMarginLoss

FORMS: dict[str, type[BaseMetricLossFunction]] = {
    form.__name__: form
    for form in (
        AngularLoss,
        CircleLoss,
        ContrastiveLoss,
        GeneralizedLiftedStructureLoss,
        HistogramLoss,
        LiftedStructureLoss,
        MarginLoss,
        MultiSimilarityLoss,
        NTXentLoss,
        PNPLoss,
        SignalToNoiseRatioContrastiveLoss,
        SmoothAPLoss,
        SupConLoss,
        ThresholdConsistentMarginLoss,
        TripletMarginLoss,
        TupletMarginLoss,
    )
}

__all__ = ['FORMS', 'MatrixForm', 'PairMasks']
