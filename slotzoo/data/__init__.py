"""Data: numpy and grain, never jax. Sources give records by index; the pipeline shuffles, shards and batches them."""

from slotzoo.data.registry import list_sources as list_sources, open_source as open_source
from slotzoo.data.spec import FieldSpec as FieldSpec, Record as Record, Source as Source
