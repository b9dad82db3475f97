"""Data: numpy and grain, never jax. Sources give records by index; the pipeline shuffles, shards, batches."""

from typing import TYPE_CHECKING, Any

from slotzoo.data.preparation import prepare as prepare, verify as verify
from slotzoo.data.registry import list_sources as list_sources, open_source as open_source
from slotzoo.data.spec import FieldSpec as FieldSpec, Record as Record, Source as Source


if TYPE_CHECKING:
    from slotzoo.data.pipeline import make_pipeline as make_pipeline


def __getattr__(name: str) -> Any:
    # grain takes seconds to import, and the commands that only convert or list data do not need it.
    if name == "make_pipeline":
        from slotzoo.data.pipeline import make_pipeline

        return make_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
