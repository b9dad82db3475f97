"""Pictures, videos and the run report: everything a person looks at."""

from slotzoo.viz.images import (
    image_grid as image_grid,
    png_bytes as png_bytes,
    to_uint8 as to_uint8,
    write_png as write_png,
)
from slotzoo.viz.objects import (
    Apart as Apart,
    object_grid as object_grid,
    picture_row as picture_row,
    segment_grid as segment_grid,
)
from slotzoo.viz.segments import (
    colour_labels as colour_labels,
    draw_boxes as draw_boxes,
    overlay as overlay,
    processed_labels as processed_labels,
    raw_labels as raw_labels,
    without_background as without_background,
)
from slotzoo.viz.strips import labelled_rows as labelled_rows, prediction_strip as prediction_strip
from slotzoo.viz.videos import (
    side_by_side as side_by_side,
    write_gif as write_gif,
    write_mp4 as write_mp4,
    write_video as write_video,
)
