"""One training process of the system tests: `python -m tests.train.worker FOLDER [options]`."""

import argparse
import os
import resource
import signal
import sys
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", default="replicated")
    parser.add_argument("--terminate-at", type=int, help="send SIGTERM to this process at a batch")
    parser.add_argument("--limit-at", type=int, help="from a batch on, files may not grow beyond 100 kB")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"

    from slotzoo.errors import SlotzooError
    from slotzoo.train import STOPPED_EXIT_CODE, initialize, loop, saved_steps, sharding
    from tests.train.small import Batches, run_linear

    initialize(
        coordinator=args.coordinator,
        process_id=args.process,
        processes=args.processes if args.coordinator else None,
    )
    loop.AGREE_EVERY = 2
    sharding.FSDP_MINIMUM = 1

    class Watched(Batches):
        def __next__(self):
            if self.index == args.terminate_at:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.index == args.limit_at:
                while not saved_steps(f"{args.folder}/checkpoints"):
                    time.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            return super().__next__()

    data = Watched(8 // args.processes, part=args.process or 0, parts=args.processes, width=args.width)
    try:
        result = run_linear(args.folder, data=data, width=args.width, strategy=args.strategy)
    except SlotzooError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(result.status, result.step, result.signal)
    sys.exit(0 if result.status == "finished" else STOPPED_EXIT_CODE)


if __name__ == "__main__":
    main()
