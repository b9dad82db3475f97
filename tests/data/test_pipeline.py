"""The pipeline: order, sharding, resumption, windows, evaluation, corrupted records."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given, strategies as st

from slotzoo.data import make_pipeline, prepare
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.errors import ConfigError, DataError
from tests.arrays import same_records
from tests.data.sources import Numbered


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def groups(iterator, size, count):
    return [take(iterator, size) for _ in range(count)]


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def train(source, **options):
    return make_pipeline(source, **{"batch_size": 2, "seed": 3, "train": True, **options})


def evaluation(source, **options):
    return make_pipeline(source, **{"batch_size": 2, "seed": 3, "train": False, **options})


def test_epochs_are_permutations_of_the_whole_set_and_differ():
    data = train(Numbered(12), batch_size=4)
    assert data.records == 12 and data.batches == 3
    epochs = [sum(labels(batches), []) for batches in groups(iter(data), 3, 4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert labels(take(iter(train(Numbered(12), batch_size=4, seed=4)), 3)) != labels(take(iter(data), 3))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_do_not_change_the_batches(threads):
    reference = take(iter(train(Numbered(7), length=2, num_threads=2)), 9)
    assert same_records(take(iter(train(Numbered(7), length=2, num_threads=threads)), 9), reference)


@pytest.mark.parametrize("before, after", [(2, 2), (0, 4), (3, 0)])
@pytest.mark.parametrize("split", [0, 1, 5])
def test_a_resumed_iterator_gives_the_very_next_batch(before, after, split):
    reference = take(iter(train(Numbered(7), length=3)), 9)
    first = iter(train(Numbered(7), length=3, num_threads=before))
    assert same_records(take(first, split), reference[:split])
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = iter(train(Numbered(7), length=3, num_threads=after))
    next(second)
    second.set_state(state)
    assert same_records(take(second, 9 - split), reference[split:])
    second.close()


@given(records=st.integers(1, 20), local=st.integers(1, 3), processes=st.integers(1, 4))
def test_the_global_batch_does_not_depend_on_the_number_of_processes(records, local, processes):
    options = {"batch_size": local, "process_count": processes, "num_threads": 0}
    shards = [
        labels(take(iter(train(Numbered(records), process_index=i, **options)), 4)) for i in range(processes)
    ]
    joined = [sum(parts, []) for parts in zip(*shards, strict=True)]
    alone = labels(take(iter(train(Numbered(records), batch_size=local * processes, num_threads=0)), 4))
    assert joined == alone


@given(records=st.integers(1, 20), local=st.integers(1, 3), processes=st.integers(1, 4))
def test_evaluation_sees_every_record_once_in_batches_of_one_size(records, local, processes):
    options = {"batch_size": local, "process_count": processes, "num_threads": 0}
    shards = [list(evaluation(Numbered(records), process_index=i, **options)) for i in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    seen = []
    for batch in itertools.chain(*shards):
        assert batch["video"].shape == (local, 6, 1) and batch["valid"].shape == (local,)
        seen += batch["label"][batch["valid"]].tolist()
    assert sorted(seen) == list(range(records))


def test_evaluation_goes_in_order_and_again():
    data = evaluation(Numbered(5), limit=4)
    assert labels(data) == labels(data) == [[0, 1], [2, 3]]


def test_windows_move_between_epochs_and_hold_consecutive_frames():
    data = train(Numbered(3, frames=50), batch_size=3, length=4)
    starts = {}
    for batch in take(iter(data), 6):
        for label, video in zip(batch["label"], batch["video"][..., 0], strict=True):
            assert np.array_equal(video, video[0] + np.arange(4)) and video[0] // 1000 == label
            starts.setdefault(int(label), set()).add(int(video[0]) % 1000)
    assert all(len(found) >= 4 for found in starts.values())
    assert next(iter(evaluation(Numbered(3, frames=50), length=4)))["video"][0, :, 0].tolist() == [0, 1, 2, 3]


def test_sources_that_read_windows_give_the_same_batches(tmp_path):
    source = MazeSource("train", length=30, size=8, clips=5)

    class Whole:
        name, provenance, fingerprint, spec = source.name, source.provenance, source.fingerprint, source.spec
        __len__, close = (lambda self: 5), (lambda self: None)
        __getitem__ = lambda self, index: source[index]

    reference = take(iter(train(Whole(), length=4)), 4)
    assert same_records(take(iter(train(source, length=4)), 4), reference)
    assert same_records(take(iter(train(prepare(source, tmp_path, chunk=7), length=4)), 4), reference)


def test_clips_shorter_than_asked_and_clips_of_different_lengths_are_explained():
    with pytest.raises(DataError, match=r"Clip \d of 'numbered' has 6 frames, fewer than the 9 asked for"):
        next(iter(train(Numbered(4), length=9)))
    with pytest.raises(DataError, match="clips of different shapes.*give a length"):
        next(iter(evaluation(Numbered(2, lengths=[4, 5]))))
    assert next(iter(evaluation(Numbered(2, lengths=[4, 5]), length=3)))["video"].shape == (2, 3, 1)


def test_a_corrupted_record_stops_training_by_default():
    with pytest.raises(DataError, match="clip 3: corrupted"):
        take(iter(train(Numbered(6, bad=[3]))), 3)


@pytest.mark.parametrize("threads", [0, 2])
def test_skipped_records_are_replaced_counted_and_survive_a_resume(threads):
    data = train(Numbered(6, bad=[2, 3]), on_error="skip", num_threads=threads)
    iterator = iter(data)
    batches = take(iterator, 6)
    assert not {2, 3} & set(sum(labels(batches), [])) and sorted(iterator.skipped) == [2, 3]
    again = iter(data)
    again.set_state(json.loads(json.dumps(iterator.get_state())))
    assert again.skipped == iterator.skipped
    assert same_records(take(again, 3), take(iterator, 3))


def test_skipping_has_a_cap():
    with pytest.raises(
        DataError, match="3 corrupted records, more than max_skips=2 allows; the last one: numbered"
    ):
        take(iter(train(Numbered(9, bad=[1, 4, 7]), on_error="skip", max_skips=2)), 9)
    with pytest.raises(DataError, match="more than max_skips=2"):
        take(iter(train(Numbered(9, bad=range(9)), on_error="skip", max_skips=2)), 1)
    with pytest.raises(DataError, match="not one of its 2 records can be read"):
        next(iter(train(Numbered(2, bad=range(2)), on_error="skip")))


def test_evaluation_marks_a_corrupted_record_as_not_valid():
    batches = list(evaluation(Numbered(5, bad=[0, 3]), on_error="skip"))
    assert [b["valid"].tolist() for b in batches] == [[False, True], [True, False], [True, False]]
    assert [b["label"][b["valid"]].tolist() for b in batches] == [[1], [2], [4]]


def test_a_position_of_another_order_is_refused():
    state = iter(train(Numbered(6))).get_state()
    with pytest.raises(DataError, match="global_batch was 2, is 3"):
        iter(train(Numbered(6), batch_size=3)).set_state(state)
    with pytest.raises(DataError, match="seed was 3, is 4"):
        iter(train(Numbered(6), seed=4)).set_state(state)
    # Two processes with half the batch each go on where one stood.
    iter(train(Numbered(6), batch_size=1, process_count=2)).set_state(state)


def test_transforms_are_seeded_by_epoch_and_record():
    def noise(record, rng):
        return {**record, "noise": rng.integers(10**9, size=2)}

    data = train(Numbered(4), batch_size=4, transforms=[noise])
    a, b = take(iter(data), 2)
    assert same_records(
        [a, b], take(iter(train(Numbered(4), batch_size=4, transforms=[noise], num_threads=0)), 2)
    )
    assert a["noise"].shape == (4, 2) and len(np.unique(np.concatenate([a["noise"], b["noise"]]))) == 16


def test_batches_of_video_are_uint8_and_actions_int32():
    batch = next(iter(train(MazeSource("train", length=5, size=8, clips=3), length=3)))
    assert batch["video"].shape == (2, 3, 8, 8, 3) and batch["video"].dtype == np.uint8
    assert batch["actions"].shape == (2, 3) and batch["actions"].dtype == np.int32


def test_closed_iterators_leave_no_threads():
    data = train(Numbered(8), num_threads=3)
    before = threading.active_count()
    for _ in range(5):
        iterator = iter(data)
        next(iterator)
        iterator.close()
    deadline = time.monotonic() + 10  # they are told to end, not waited for
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"length": 0}, "length of at least 1"),
        ({"num_threads": -1}, "num_threads of at least 0"),
        ({"process_index": 2, "process_count": 2}, "process_index 2 is not one of 2 processes"),
    ],
)
def test_wrong_options_are_explained(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(Numbered(4), **options)
    with pytest.raises(DataError, match="has no records"):
        train(Numbered(0))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40 + 5])
def test_any_seed_is_taken(seed):
    next(iter(train(Numbered(4), seed=seed)))


def test_orbax_saves_and_restores_the_position(tmp_path):
    import grain
    import orbax.checkpoint as ocp

    reference = take(iter(train(Numbered(7), length=3)), 6)
    iterator = iter(train(Numbered(7), length=3))
    take(iterator, 2)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        again = iter(train(Numbered(7), length=3))
        manager.restore(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(again)))
    assert same_records(take(again, 4), reference[2:])


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_positions():
    source = MazeSource("train", length=3, size=8, clips=5)
    reference = take(iter(train(source)), 5)
    workers = iter(train(source, num_workers=2))
    try:
        assert same_records(take(workers, 3), reference[:3])
        threads = iter(train(source))
        threads.set_state(workers.get_state())
        assert same_records(take(threads, 2), reference[3:])
    finally:
        workers.close()
