"""Scans and attentions as plain functions on arrays, each in several implementations."""

from slotzoo.ops.linear_scan import linear_scan as linear_scan
from slotzoo.ops.selective_scan import selective_scan as selective_scan, selective_step as selective_step
from slotzoo.ops.sequence_parallel import sequence_parallel_scan as sequence_parallel_scan
from slotzoo.ops.sharding import batch_map as batch_map
from slotzoo.ops.slot_attention import slot_attention as slot_attention
from slotzoo.ops.ssd import ssd as ssd, ssd_step as ssd_step
