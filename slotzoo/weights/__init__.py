"""Weights by name: saving, loading, and reading what other projects published. Never by position, never pickled."""

from slotzoo.weights.files import (
    WeightsCard as WeightsCard,
    card_path as card_path,
    load_card as load_card,
    load_model as load_model,
    load_weights as load_weights,
    save_weights as save_weights,
)
from slotzoo.weights.leaves import fill as fill, named_leaves as named_leaves
