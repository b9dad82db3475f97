"""Checkpoints as the authors' trainer writes them: read, converted, run; of both generations of flax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models.savi import SAVi
from slotzoo.tasks.object_videos import ObjectVideosConfig, ObjectVideosTask, _measure
from slotzoo.weights.convert.rules import to_seed
from slotzoo.weights.convert.savi import convert_checkpoint, read_checkpoint, rules
from slotzoo.weights.convert.savi_rules import joined
from tests.parity.harness import Case, checks
from tests.parity.savi.models import compare_segments


WHOLE = 1e-4


@checks("native_ckpt_*")
def check_checkpoint(case: Case) -> None:
    """The newest checkpoint of the folder gives the recorded outputs for the first validation batch."""
    folder = case.path
    found = convert_checkpoint(folder, model=case.config["model"])
    model = found.model
    assert isinstance(model, SAVi)
    assert found.step == case.meta["state_step"]
    batch = {name: jnp.asarray(array) for name, array in case.inputs.items()}

    @eqx.filter_jit
    def run(model):
        def one(clip):
            tracked = model.track(clip["video"], model.conditions(clip))
            return tracked, model.decode(tracked.corrected), model.loss(clip)[0]

        return jax.vmap(one)(batch)

    tracked, (made, masks), losses = run(model)
    case.compare(tracked.corrected, "states", rtol=WHOLE)
    case.compare(tracked.predicted, "states_pred", rtol=WHOLE)
    for name in model.config.targets:
        case.compare(made[name], f"outputs/{name}", rtol=WHOLE)
    compare_segments(masks, case.outputs["outputs/segmentations"])
    case.compare(losses.mean(), "loss", rtol=WHOLE)
    # Sizes that are not published: told only by the configuration.
    with pytest.raises(WeightsError, match="those of none of savi_large"):
        convert_checkpoint(folder)


TRAINING = dict.fromkeys(("loss", "ari", "ari_nobg"), "of training batches, which are not recorded")
LOGS = {f"out/log/*/{name}": why for name, why in (TRAINING | {"steps_per_sec": "how fast it was"}).items()}


@checks("native_ckpt_*", unchecked=LOGS)
def check_evaluation(case: Case) -> None:
    """Our evaluation of the recorded validation clips measures what the authors' trainer has logged of them.

    It goes through a clip in slices, and a memory begins each of them empty.
    """
    found = convert_checkpoint(case.path, model=case.config["model"])
    as_stored = lambda x: np.rint(x * 255).astype(np.uint8)
    clips = {"video": as_stored(case.inputs["video"]), "flow": as_stored(case.inputs["flow"])}
    clips |= {"boxes": case.inputs["boxes"], "mask": case.inputs["segmentations"].astype(np.uint8)}
    if "depth" in case.inputs:
        clips["depth"] = case.inputs["depth"]
    assert case.inputs["padding_mask"].all() and case.inputs["mask"].all()
    task = ObjectVideosTask(ObjectVideosConfig(chunk=case.config["eval_slice_size"]))
    keys = jax.random.split(jax.random.key(0), len(clips["video"]))
    values = _measure(found.model, jax.tree.map(jnp.asarray, clips), keys, task.config)
    logged = {name.split("/eval_")[1]: name for name in case.outputs if "/eval_" in name}
    case.compare(values["loss"].mean(), logged["loss"], rtol=WHOLE)
    for ours, theirs in {"ari": "ari", "fg_ari": "ari_nobg"}.items():
        in_slices = (values[f"authors/{ours}"].mean(), logged[theirs])
        for found, name in (in_slices, (values[ours], ours)):
            # An index near 0 is a small difference of shares of pairs, whose rounding is that of 1.
            np.testing.assert_allclose(found, case.outputs[name], rtol=0, atol=1e-6, err_msg=name)


@checks("native_ckpt_*")
def check_files(case: Case) -> None:
    """Every array of every file arrives, exactly; what TensorFlow keeps beside them is no checkpoint."""
    for path in sorted((case.path / "checkpoints-0").iterdir()):
        if path.suffix != ".flax":
            with pytest.raises(WeightsError):
                read_checkpoint(path)
            continue
        params, _ = read_checkpoint(path)
        found = convert_checkpoint(path, model=case.config["model"])
        merged = joined(params)
        for name, array in to_seed(found.model, merged, rules(found.config)).items():
            np.testing.assert_array_equal(array.reshape(merged[name].shape), merged[name], err_msg=name)
