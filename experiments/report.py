"""`python -m experiments.report run=runs/NAME/seed0`: write the run's report.html again."""

from omegaconf import DictConfig

from experiments import cli


def report(config: DictConfig) -> int:
    """Write report.html from what lies in the folder of a run."""
    from pathlib import Path

    from experiments import validate
    from experiments.folder import RunFolder
    from experiments.schema import ReportSettings
    from slotzoo.viz.report import write_report

    asked = validate.settings(config, ReportSettings)
    folder = RunFolder(Path(asked.run).expanduser())
    folder.read_settings()  # refuses what is not a run
    print(f"Report: {write_report(folder.path)}")
    return 0


main = cli.command("report", report)


if __name__ == "__main__":
    main()
