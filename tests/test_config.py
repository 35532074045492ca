"""Configuration: errors that cure, YAML that reproduces itself, recipes that follow the table of switches."""

import pytest
import yaml

from iisan.config import AnchorConfig, Config, parse
from iisan.errors import ConfigError
from iisan.nested import flatten
from iisan.recipes import RECIPES, load_config, paper, recipe, reference


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.bacth=1", "unknown configuration key 'training.bacth'.*did you mean 'training.batch_size'"),
        ("training.batch_size=-1", "'training.batch_size' has the value -1; expected greater than 0"),
        ("training.batch_size=many", "'training.batch_size' has the value 'many'"),
        (
            "items.kind=tabel",
            "'items.kind' has the value 'tabel'; expected 'side', 'projection', 'table' or 'none'",
        ),
        ("optimizer.gate_learning_rates.foo=1", "settings of a tower 'foo', which is none of audio, image"),
        ("training.batch_size.x=1", "looks inside 'batch_size', which is a value"),
        ("foo", "'foo' is no assignment"),
        ("training.batch_size=[1", "is not YAML"),
        ("dataset=2024-13-45", "is not YAML"),
        ("training.batch_size=!!int many", "is not YAML"),
        ("training.seed=18446744073709551616", "'training.seed' has the value 18446744073709551616"),
        ("evaluation.policy=none", "'evaluation.policy' has the value 'none'; .*: it is now 'all'"),
        ("evaluation.policy=keep-target", "expected 'unseen', 'all' or 'exclude-all': it is now 'unseen'"),
        ("items.fusion=linear", "unknown configuration key 'items.fusion'.*: it was removed: leave it out"),
        ("columns.x.jpeg_draft=true", "'columns.x.jpeg_draft'.*: it was removed: leave it out"),
        ("items=3", "'items' has the value 3; expected keys and values"),
        ("evaluation.shares=[0.8,0.1]", r"'evaluation.shares.2' is missing in \[0.8, 0.1\]"),
        ("evaluation.shares=[0.4,0.3,0.2,0.1]", "'evaluation.shares' has the value .* expected 3 values or fewer"),
        ("evaluation.shares=[1,0.5,-0.5]", r"'evaluation.shares.2' has the value -0.5"),
        ("evaluation.shares=[0.8,0.1,0.2]", r"shares \[0.8, 0.1, 0.2\] sum to 1.1, not 1"),
        ("evaluation.held_out_seed=-1", "'evaluation.held_out_seed' has the value -1"),
        ("evaluation.select=hr@7", "select 'hr@7' needs its cut-off among cutoffs"),
        ("modalities=[text,text]", "names one twice"),
        ("modalities=[]", "'table' learns from ids alone"),
        ("sequence.num_heads=3", "no multiple of sequence.num_heads"),
        ("text.levels=[]", r"'text.levels' has the value \[\]"),
        ("optimizer.learning_rate=.nan", "has the value nan; expected a finite number: change that value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_cure(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe("default").override([override])


def test_no_tower_left():
    with pytest.raises(ConfigError, match="no tower is left"):
        recipe("default").override(["modalities=[text]", "items.intra=false"])


def test_full_softmax_takes_no_negatives():
    with pytest.raises(ConfigError, match="every item is a candidate already"):
        recipe("default").override(["loss.candidates=all", "loss.negatives=5"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_file_reproduces_itself(name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(recipe(name).to_yaml())
    assert load_config(path) == recipe(name)


def test_a_file_states_only_what_differs_from_its_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: reference\ntraining: {batch_size: 7}\n")
    config = load_config(path, ["training.seed=3"])
    assert (config.training.batch_size, config.training.seed) == (7, 3)
    assert config.items == reference().items


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "holds a list; expected"),
        ("a: [", "cannot be read as YAML"),
        ("recipe: mine\n", "no recipe 'mine'"),
    ]
    + [(text, "cannot be read as YAML") for text in ("dataset: 2024-13-45", "training: &a {batch: *a}")],
)
def test_a_bad_file_is_explained(text, sentence, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path)


def test_a_recipe_is_not_an_override(tmp_path):
    """It would only rename a run; names of one's own are."""
    path = tmp_path / "config.yaml"
    path.write_text(recipe("default").to_yaml())
    for source in ("default", path):
        with pytest.raises(ConfigError, match=r"recipe=frozen, which is only a name.*: name 'frozen' as CONFIG"):
            load_config(source, ["recipe=frozen"])
        assert load_config(source, ["recipe=mine"]).recipe == "mine"


def test_the_configuration_of_a_joined_run_trains_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(recipe("default").model_copy(update={"recipe": "default + ids"}).to_yaml())
    with pytest.raises(ConfigError, match=r"is that of a joined run.*: join its members again"):
        load_config(path)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="neither a recipe nor a file"):
        load_config("deflaut")
    with pytest.raises(ConfigError, match=r"no file 'x\.yaml'"):
        load_config("x.yaml")


def test_paper_and_reference_follow_the_table_of_switches():
    """The table of switches in docs/method.md, row by row."""
    one, two = paper(), reference()
    assert (one.items.gate_on, two.items.gate_on) == ("previous", "hidden")
    assert (one.items.first_block, two.items.first_block) == ("alone", "gated")
    assert (one.items.projection, two.items.projection) == ("single", "double")
    assert (one.items.concatenation, two.items.concatenation) == ("inter-between", "inter-last")
    assert (one.loss.reduction, two.loss.reduction) == ("sum", "mean")
    assert (one.loss.exclude, two.loss.exclude) == ("training", "window")
    assert (one.evaluation.policy, two.evaluation.policy) == ("all", "exclude-all")
    assert (one.training.batch_size, two.training.batch_size) == (32, 64)
    assert (one.training.early_stopping_patience, two.training.early_stopping_patience) == (10, 11)
    for config in (one, two):
        assert config.loss.candidates == "batch"
        assert config.loss.negatives == 0
        assert config.text.max_tokens == 30
        assert config.text.pooling == "cls"
        assert config.sequence.max_length == 10
    assert two.optimizer.projection_learning_rates == {"text": 5e-5, "image": 1e-4}
    assert two.optimizer.gate_learning_rates == {"image": 1e-4}


def test_yaml_holds_plain_values_only():
    values = yaml.safe_load(Config().to_yaml())
    assert parse(values) == Config()
    assert all(isinstance(value, str | int | float | bool | list | dict | None) for _, value in flatten(values))


def test_a_complete_file_takes_nothing_from_its_recipe(tmp_path):
    """Dictionaries with fewer entries than the recipe's, and a name that is no recipe's."""
    changed = recipe("versa").override(
        ["items.bottlenecks={text: 8}", "optimizer.projection_learning_rates={}", "recipe=mine"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(changed.to_yaml())
    assert load_config(path) == changed
    assert load_config(path, ["items.embedding_dim=32"]).items.embedding_dim == 32


def test_the_anchor_is_switched_without_losing_its_settings(tmp_path):
    config = recipe("default").override(["anchor.width=256", "anchor=false"])
    assert config.anchor == AnchorConfig(enabled=False, width=256)
    assert config.override(["anchor=true", "anchor.shrinkage=0.1"]).anchor == AnchorConfig(
        enabled=True, width=256, shrinkage=0.1
    )
    (tmp_path / "config.yaml").write_text("recipe: ids\nanchor: true\n")
    assert load_config(tmp_path / "config.yaml", ["anchor.width=null"]).anchor == AnchorConfig(
        enabled=True, width=None
    )
