"""The report of a run: what it shows, what it survives, and what a real browser makes of it."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from slotzoo.errors import DataError
from slotzoo.metrics import VideoProtocol
from slotzoo.viz import prediction_strip, side_by_side, write_gif, write_png, write_video
from slotzoo.viz.curves import MAX_POINTS, line_chart
from slotzoo.viz.plots import write_plot
from slotzoo.viz.records import read_run
from slotzoo.viz.report import write_report
from slotzoo.viz.tables import format_value, read_tables, text_tables


EVIL = "<script>document.title='owned'</script>"
BROWSERS = (
    "chromium",
    "chromium-browser",
    "chromium-headless-shell",
    "google-chrome",
    "google-chrome-stable",
    "chrome-headless-shell",
)


def clips(steps=8, size=16):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, steps, size, size, 3), dtype=np.uint8)
    noise = rng.integers(-20, 20, truth.shape)
    return truth, np.clip(truth.astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def run(tmp_path):
    """A run folder as the training loop leaves it."""
    folder = tmp_path / "convs5_demo" / "seed3"
    folder.mkdir(parents=True)
    lines = []
    for step in range(10, 101, 10):
        lines.append({"step": step, "split": "train", "loss": 5.0 / step, "steps_per_second": 4.0})
        if step % 50 == 0:
            lines.append({"step": step, "split": "eval", "loss": 6.0 / step, "action_3/psnr": 20.0 + step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {
        "data": {"name": "dmlab", "provenance": "embedded double"},
        "starts": [{"packages": {"jax": "1.2.3"}}],
    }
    (folder / "run.json").write_text(json.dumps(card))
    (folder / "config.yaml").write_text(f"name: demo\nnote: {EVIL}\n")
    (folder / "train.log").write_text(f"began\n{EVIL}\n")
    truth, predicted = clips()
    protocol = VideoProtocol(context=3)
    protocol.add(truth, predicted)
    for step in (50, 100):
        place = folder / "evaluation" / f"step_{step}"
        place.mkdir(parents=True)
        (place / "table.json").write_text(json.dumps({"tables": [protocol.table(f"Rollout {EVIL}")]}))
        write_png(place / "clip_0.png", prediction_strip(truth[0], {"model": predicted[0]}, context=3))
        frames = side_by_side({"truth": truth[0], "model": predicted[0]}, context=3)
        write_video(place / "clip_0", frames)
        write_gif(place / "clip_1.gif", frames)
    return folder


class Page(HTMLParser):
    """Counts tags and collects text, sources and links."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.links, self.text, self.open = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [v for k, v in found.items() if k == "src"]
        self.links += [v for k, v in found.items() if k == "href"]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text())
    assert not page.open, f"left open: {page.open}"
    return page


def test_whole_report(run):
    page = page_of(run)
    assert "convs5_demo, seed 3" in page.text
    assert "Not the real data set" in page.text and "embedded double" in page.text
    assert "Evaluation at step 100" in page.text and "repeat last frame" in page.text
    assert "PSNR by frame" in page.text and "1.2.3" in page.text
    assert "0.9.9" not in page.text  # of many starts the last is shown
    assert "script" not in page.tags and EVIL in page.text
    # Self-contained: everything that a browser loads is inside, and nothing is linked.
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    kinds = {source.split(";")[0] for source in page.sources}
    assert {"data:image/png", "data:image/gif"} <= kinds and not page.links
    assert page.tags.count("svg") > 4
    assert not list(run.glob(".*tmp"))


def test_writing_it_again_changes_nothing(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_real_data_is_said_without_alarm(run):
    (run / "run.json").write_text(json.dumps({"data": {"provenance": "real"}}))
    text = page_of(run).text
    assert "Data: real" in text and "Not the real data set" not in text


def test_large_files_are_linked(run):
    write_report(run, embed_limit=10)
    page = Page((run / "report.html").read_text())
    assert not page.sources and "too large to be part of this file" in page.text
    assert "evaluation/step_100/clip_0.png" in page.links
    assert all((run / link).is_file() for link in page.links)
    write_report(run, total_limit=3000)
    page = Page((run / "report.html").read_text())
    assert sum(len(source) for source in page.sources) < 4500


def test_a_torn_last_line_is_no_damage_and_others_are_counted(run):
    log = run / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 110, "split": "tra')
    assert not read_run(run).problems
    whole = log.read_text()
    log.write_text('nonsense\n{"no": "step"}\n[1]\n' + whole)
    records = read_run(run)
    assert records.problems == ("3 line(s) of metrics.jsonl cannot be read and are left out.",)
    assert len(records.lines) == 12 and records.step == 100
    assert "3 line(s) of metrics.jsonl" in page_of(run).text


def test_everything_may_be_missing(tmp_path):
    text = page_of(tmp_path).text
    for sentence in (
        "run card does not say where the data came from",
        "The configuration (config.yaml) is missing.",
        "The log of numbers (metrics.jsonl) is missing.",
        "There is no evaluation yet",
    ):
        assert sentence in text
    with pytest.raises(DataError, match="is not a folder: a report is written for a run folder"):
        write_report(tmp_path / "nowhere")


def test_everything_may_be_broken(run):
    (run / "run.json").write_text("[1, 2")
    (run / "metrics.jsonl").write_text("\n\n")
    (run / "evaluation" / "step_100" / "table.json").write_text('{"tables": 3}')
    (run / "evaluation" / "step_x").mkdir()
    text = page_of(run).text
    assert "The run card (run.json) is not readable JSON." in text
    assert "No numbers were logged yet" in text
    assert "The table of step 100 cannot be read." in text


def test_what_was_measured_after_training_is_shown(run):
    """`experiments.evaluate` writes beside the evaluations of training, and says which split it measured."""
    top = run / "evaluation"
    for name in ("step_50_train", "step_100_test", "step_100_test_2"):
        shutil.copytree(top / "step_50", top / name)
    (top / "step_100_val").mkdir()  # was stopped before its end
    text = page_of(run).text
    titles = re.findall(r"(Evaluation at step \d+(?:, split [a-z]+)?(?:, number \d)?)", text)
    assert titles == [
        "Evaluation at step 100",
        "Evaluation at step 100, split test, number 2",
        "Evaluation at step 100, split test",
        "Evaluation at step 50, split train",
    ]
    assert "Pictures and videos of step 100, split test" in text
    shutil.rmtree(top / "step_50")
    shutil.rmtree(top / "step_100")
    text = page_of(run).text
    assert "There is no evaluation yet" not in text and "Evaluation at step 50, split train" in text
    (top / "step_50_train" / "table.json").write_text("[")
    assert "The table of step 50, split train cannot be read." in page_of(run).text


def test_borders_are_explained_where_they_tell_given_frames_from_predicted_ones(run):
    """Rollouts are framed that way; videos of tracks are framed by the colours of slots."""
    assert "Blue borders" not in page_of(run).text
    strip = run / "evaluation" / "step_100" / "clip_0.png"
    strip.rename(strip.with_name("rollout_action_3_0.png"))
    assert "Blue borders: frames that were given." in page_of(run).text


def test_links_out_of_the_folder_are_not_followed(run, tmp_path):
    secret = write_png(tmp_path / "secret.png", np.zeros((4, 4, 3), np.uint8))
    os.symlink(secret, run / "evaluation" / "step_100" / "a.png")
    names = [path.name for path in read_run(run).evaluations[-1].media]
    assert "a.png" not in names and "clip_0.png" in names


def test_measures_of_all_splits_share_a_chart(run):
    series = read_run(run).series()
    assert set(series["loss"]) == {"train", "eval"}
    assert series["psnr"] == {"eval, action 3": ([50, 100], [70.0, 120.0])}


def chart(ys, **options):
    return line_chart({"a": (list(range(len(ys))), ys)}, title="t", **options)


def test_chart_of_gaps_spikes_and_nothing():
    assert chart([None, float("nan"), float("inf")]).count("No finite values") == 1
    assert chart([]).count("No finite values") == 1
    assert chart([1.0, 2.0, None, 3.0, 4.0]).count("<polyline") == 2
    assert chart([1.0, None, 3.0]).count("<circle") == 2
    assert chart([5.0]).count("<circle") == 1
    spiky = [0.0] * 5000
    spiky[2345] = 1.0
    points = re.search(r'points="([^"]*)"', chart(spiky))[1].split()
    assert len(points) <= MAX_POINTS + 2
    heights = [float(point.split(",")[1]) for point in points]
    assert min(heights) < np.median(heights) - 50


@pytest.mark.parametrize("values", [[1e-12, 2e-12], [1e9, 3e12], [-4.0, -4.0], [0.0, 0.0], [1.0, 1e6]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_chart_stays_inside_its_box(values, logarithmic):
    text = chart(values, logarithmic=logarithmic)
    for point in re.search(r'points="([^"]*)"', text)[1].split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 400 and 0 <= y <= 220
    assert 'text-anchor="end"' in text


def test_a_plot_leaves_gaps(tmp_path):
    def drawn(ys):
        path = write_plot(tmp_path / "a.png", {"a": (range(5), ys)}, title="A", x_label="x")
        return (np.asarray(Image.open(path)) == np.array([0, 0x72, 0xB2])).all(-1).sum()

    assert drawn([1.0, 1.0, None, 1.0, 1.0]) < 0.8 * drawn([1.0] * 5)


def test_ticks_of_steps_are_whole():
    labels = re.findall(r'text-anchor="middle">([^<]*)</text>', chart([1.0, 2.0, 3.0]))
    assert labels == ["0", "1", "2", "step"]


def test_tables():
    content = {
        "title": "T",
        "columns": ["PSNR", "clips"],
        "better": {"PSNR": "higher"},
        "rows": [{"name": "model", "PSNR": 23.45678, "clips": 4}, {"name": "other", "PSNR": None}],
        "notes": ["a note"],
    }
    (table,) = read_tables(content)
    assert table.best("PSNR") is None  # one number is not better than another
    assert text_tables(content).splitlines() == [
        "T",
        "          PSNR  clips",
        "  model  23.46      4",
        "  other      –      –",
        "  a note",
    ]
    assert read_tables({"rows": [{"name": "x", "a": 1, "b": 2}]})[0].columns == ("a", "b")
    assert [format_value(v) for v in (None, 3, 3.0, 0.00012345, "61.0%", True)] == [
        *("–", "3", "3", "0.0001234", "61.0%", "True")
    ]
    for broken in ({"tables": 1}, {"rows": [1]}, {"tables": [1]}):
        with pytest.raises(DataError):
            read_tables(broken)


def browser():
    named = os.environ.get("CHROME")
    return named or next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium on PATH and none named by CHROME")
def test_in_a_real_browser(run, tmp_path):
    write_report(run)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2400"]
    common = [browser(), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    address = (run / "report.html").as_uri()
    done = subprocess.run([*common, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    # The browser's own tree: nothing was dropped or moved, and no injected script ran.
    assert "<title>convs5_demo, seed 3</title>" in done.stdout
    for tag, least in (("<svg", 5), ("<table", 2), ("<img", 2), ("<figure", 6)):
        assert done.stdout.count(tag) >= least, tag
    picture = tmp_path / "page.png"
    subprocess.run(
        [*common, f"--screenshot={picture}", address],
        capture_output=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2400, 1200, 3)
    # Curves and borders are drawn in these colours, the banner in its own; a blank or broken page has none.
    for colour in ((0, 114, 178), (213, 94, 0), (255, 241, 224)):
        assert np.any(np.all(np.abs(pixels.astype(int) - colour) <= 3, axis=-1)), colour
