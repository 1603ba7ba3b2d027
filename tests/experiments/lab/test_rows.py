"""The rows: all of them valid, and broken ones really broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.lab.rows import (
    ABLATIONS,
    BASE,
    BROKEN,
    HEADLINE,
    METHODS,
    PARTS,
    TFT,
    GridSetting,
    by_name,
    layer_pairs,
    reference_of,
)
from experiments.lab.tasks import TASKS, TRAINING_PER_SKILL, SkillsTask, Task, shuffled, training_records
from pivotune.anatomy import Anatomy
from pivotune.lab.base import load_base
from pivotune.lab.trial import item, run_config
from pivotune.method import Method

EVERY = [*HEADLINE, *ABLATIONS]
every_task = pytest.mark.parametrize("task", [task() for task in TASKS.values()], ids=list(TASKS))


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_every_row_is_a_run(setting: GridSetting, tmp_path: Path) -> None:
    config = run_config(setting.at_layers((1, 4)), "base", tmp_path / "data", tmp_path / "run", max_steps=7)
    config.check()
    assert config.training.max_steps == 7
    model, _ = load_base()
    method = Method(model, config.objectives)
    assert {*method.weights} - {"connection_norm"} == {"lm", *setting.terms}  # that is measured alone


def test_names_and_references() -> None:
    names = [setting.name for setting in EVERY]
    assert len(set(names)) == len(names) and BASE.name not in names
    tuned = {setting.name for setting in METHODS}
    assert all(setting.tuned_as in tuned for setting in EVERY)
    assert all(setting.rate_of for setting in (*PARTS, *BROKEN, *ABLATIONS))
    for setting in ABLATIONS:  # one option at a time
        changed, before = setting.content(), reference_of(setting).content()
        differ = [name for name in changed if changed[name] != before[name]]
        assert len(differ) == 1, setting.name
    for setting in BROKEN:
        assert by_name(setting.tuned_as).content() | {"recipe": "shuffled"} == setting.content()


def test_layers() -> None:
    assert TFT.at_layers((2, 5)) == TFT
    chosen = by_name("logits").at_layers((2, 5)).deep_supervision
    assert chosen is not None and (chosen.conversion_layer, chosen.thinking_layer) == (2, 5)
    model, _ = load_base()
    layers = Anatomy(model).num_layers
    pairs = layer_pairs(by_name("feature"), layers)
    assert len(pairs) == layers * (layers - 1) // 2
    for (i, j), setting in pairs.items():
        assert i < j and setting.at_layers((1, 1)) == setting and setting.tuned_as == "feature"


@every_task
def test_shuffling_leaves_no_pair(task: Task) -> None:
    own = {record["id"]: record for record in training_records(task, task.languages, "target", 0)}
    found = training_records(task, task.languages, "shuffled", 0)
    assert {record["id"] for record in found} == set(own) and len(found) == len(own)
    for record in found:
        assert record["english"]["prompt"] != own[record["id"]]["english"]["prompt"]
        assert record["prompt"] == own[record["id"]]["prompt"]
    for language in task.languages:  # nothing is lost, nothing comes twice, nothing crosses languages
        texts = [
            sorted(str(record["english"]) for record in some if record["language"] == language)
            for some in (found, own.values())
        ]
        assert texts[0] == texts[1]
    assert found == training_records(task, task.languages, "shuffled", 0)
    assert found != training_records(task, task.languages, "shuffled", 1)


def test_shuffling_refuses_what_it_cannot_break() -> None:
    record = {"id": "a.zh", "language": "zh", "prompt": "问", "completion": " 答", "english": {"prompt": "Q"}}
    with pytest.raises(ValueError, match=r"a\.zh.*its own"):
        shuffled([record], 0)


@every_task
def test_recipes(task: Task) -> None:
    target, english, both = (
        training_records(task, task.languages[:1], recipe, 0) for recipe in ("target", "english", "with english")
    )
    assert len(english) == len(target) and both == target + english
    assert {record["language"] for record in english} == {"en"}
    assert len({record["id"] for record in both}) == len(both)
    assert all("english" not in record for record in english)


@every_task
def test_an_item_has_one_name_in_all_languages(task: Task) -> None:
    names = [{item(record) for record in task.examples("heldout", language)} for language in ("en", *task.languages)]
    assert all(name & names[0] == name for name in names[1:]) and len(names[1]) > 50


def test_few_questions_teach_the_skills() -> None:
    task = SkillsTask()
    assert TASKS[task.name] is SkillsTask
    for language in task.languages:
        records = list(task.examples("training", language))
        assert len(records) == 3 * TRAINING_PER_SKILL
        assert "continuation" not in {item(record).split(".")[0] for record in records}
        assert "continuation" in {item(record).split(".")[0] for record in task.examples("heldout", language)}
