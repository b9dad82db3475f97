"""Two real processes over loopback: one run, which also goes on in a single process."""

import socket

import pytest

from tests.system.commands import MODEL, assert_close_runs, finish, losses


pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(place, *overrides):
    port = free_port()
    processes = [
        place.start(
            "train",
            *MODEL,
            place.tokenizer,
            "mesh.processes=2",
            f"mesh.process_id={i}",
            f"mesh.coordinator=127.0.0.1:{port}",
            *overrides,
        )
        for i in range(2)
    ]
    return [finish(process) for process in processes]


def test_two_processes_train_and_resume(place):
    train(place, "train.steps=4", "optim.schedule=constant")
    assert sorted(losses(place.run)) == [1, 2, 3, 4]
    outputs = train(place, "train.steps=6", "optim.schedule=constant")
    assert "Going on" in outputs[0]
    alone = place.folder / "runs" / "alone" / "seed0"
    place.train("name=alone", "optim.schedule=constant")
    assert_close_runs(place.run, alone, rtol=1e-5)
