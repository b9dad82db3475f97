"""Checkpoints as the authors' trainer writes them: read, converted, run; of both generations of flax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models.savi import SAVi
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
