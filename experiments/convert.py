"""`python -m experiments.convert source=PATH out=FILE.safetensors`: read a published checkpoint, write weights."""

from omegaconf import DictConfig

from experiments import cli


TORCH_FILES = (".ckpt", ".pt", ".pth", ".tar")


def convert(config: DictConfig) -> int:
    """Convert `source`, a run's folder or a PyTorch file, to `out` and the card beside it; load that once more.

    A weights file of ours as `source`, of a SlotSSM or of the ConvSSM family, is written to the folder `out` as the
    authors' code writes checkpoints.
    """
    from pathlib import Path

    from experiments import validate
    from experiments.schema import ConvertSettings
    from slotzoo.errors import ConfigError
    from slotzoo.models import model_card
    from slotzoo.weights import load_model, save_weights
    from slotzoo.weights.convert import savi
    from slotzoo.weights.convert.convssm import convert_run
    from slotzoo.weights.convert.convssm_export import can_export, export_run
    from slotzoo.weights.convert.object_discovery import convert_checkpoint
    from slotzoo.weights.convert.slotssm import convert_folder, export_folder, is_checkpoint

    asked = validate.settings(config, ConvertSettings)
    source, out = Path(asked.source).expanduser(), Path(asked.out).expanduser()
    if source.suffix == ".safetensors":
        model, card = load_model(source)
        written = export_run(model, out) if can_export(model) else export_folder(model, out)
        print(f"{card.model}: written for its authors' code to {written}")
        return 0
    if (source / "weights.safetensors").is_file():
        raise ConfigError(
            f"source='{source}' is a run of slotzoo's own, whose weights.safetensors loads as it is; "
            "source=FOLDER/weights.safetensors out=FOLDER writes it for its authors' code."
        )
    if is_checkpoint(source):
        found = convert_folder(source)
    elif savi.is_checkpoint(source):
        theirs = savi.read_model(asked.model) if asked.model.endswith(".json") else None
        found = savi.convert_checkpoint(source, name=None if theirs else asked.model or None, model=theirs)
    else:
        found = convert_checkpoint(source) if source.suffix in TORCH_FILES else convert_run(source)
    published = model_card(found.name)
    card = save_weights(
        out,
        found.model,
        name=found.name,
        config=found.config,
        source=asked.origin or published.source,
        licence=asked.licence or published.licence,
        notes=f"{found.notes}, converted from step {found.step} of '{source.name}'",
    )
    _, kept = load_model(card)
    print(f"{found.notes}: {kept.parameters:,} parameters of step {found.step} in {out}")
    print(f"Card: {card} (sha256 {kept.sha256[:12]}...)")
    return 0


main = cli.command("convert", convert)


if __name__ == "__main__":
    main()
