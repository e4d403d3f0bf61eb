"""The pictures and tables of the experiments, drawn from tiny runs."""

import json

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pydantic")
pytest.importorskip("sklearn")

from PIL import Image

from thickets.tasks import digits, experiments, signals

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {"signals": ("haystack", "plateau"), "digits": ("rotation", "noise")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Both tasks with next to no pretraining, with their comparison of families."""
    out = tmp_path_factory.mktemp("out")
    networks = {task: task.network for task in (signals, digits)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "HELD_OUT", 6)
        patch.setattr(signals, "network", lambda regime, seed: networks[signals](regime, seed, steps=5))
        patch.setattr(digits, "network", lambda seed: networks[digits](seed, steps=20))
        settings = {"n": 12, "families": ("rademacher",), "family_n": 6, "correlate": 4, "progress": False}
        options = {"signals": {"examples": 5, "horizon": 3}, "digits": {}}
        found = [
            experiments.run_experiment(
                task, names, out / task, experiments.Settings(options=options[task], **settings)
            )
            for task, names in CASES.items()
        ]
    return out, found, experiments.write_report(out, found)


@pytest.mark.parametrize(
    "picture", ["signals/signals", "digits/digits", "signals/families", "digits/families"]
)
def test_pictures_are_drawn(ran, picture):
    image = Image.open(ran[0] / f"{picture}.png").convert("RGB")
    assert image.width == 1650
    colours = {colour for count, colour in image.getcolors(maxcolors=2**24) if count > 50}
    assert (213, 94, 0) in colours  # the base, in orange
    assert len(colours) > 5


def test_the_report_says_what_was_found(ran):
    out, found, report = ran
    assert json.loads((out / "report.json").read_text()) == report
    assert [case["case"] for case in report["cases"]] == [name for names in CASES.values() for name in names]
    assert [len(comparison["rows"]) for comparison in report["families"]] == [2, 2]
    text = (out / "report.md").read_text()
    rotation = found[1].outcomes[0]
    assert f"| digits: rotation | accuracy ↑ | {rotation.interval('base').value:.3f} [" in text
    assert "![families](digits/families.png)" in text
    assert text.count("| normal again | 1 x 6 |") == 2


def test_every_row_of_a_table_has_its_columns(ran):
    for table in experiments.report_tables(ran[1]):
        assert {len(row) for row in table.rows} == {len(table.heads)}
        assert table.markdown().count("\n| ") == len(table.rows) + 2
