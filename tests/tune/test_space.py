import re
from pathlib import Path

import pytest
import yaml

from iisan.errors import ConfigError
from iisan.tune.space import Range, Space, read_space

FINE = {"space": {"sequence.num_layers": [1, 2]}}


def write(folder, **entries):
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(FINE | entries))
    return path


def test_a_space_is_read_and_its_fixed_settings_are_those_of_every_trial(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "recipe: ids\nobjective: ndcg@10\ntrials: 7\nsettings: {training: {epochs: 3}, loss.negatives: 9}\n"
        "space:\n  optimizer.learning_rate: {low: 1e-5, high: 1e-2, log: true}\n"
        "  sequence: [{kind: gru4rec, dropout: 0}, {kind: sasrec}]\n"
    )
    space = read_space(path)
    # YAML takes 1e-5 for a word.
    assert space.space["optimizer.learning_rate"] == Range(low=1e-5, high=1e-2, log=True)
    base = space.base()
    assert (base.recipe, base.training.epochs, base.loss.negatives) == ("ids", 3, 9)
    assert (base.evaluation.select, base.training.precision) == ("ndcg@10", "fp32")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"trails": 5}, "unknown key 'trails'; expected a known key: did you mean 'trials'"),
        ({"space": {}}, "space = {}; expected 1 or more values"),
        ({"space": {"sequence.num_layer": [1, 2]}}, "did you mean 'sequence.num_layers'"),
        ({"space": {"sequence.num_layers": [1, 0]}}, "'sequence.num_layers' has the value 0"),
        ({"space": {"sequence.num_layers": [1]}}, "space.sequence.num_layers = [1]"),
        ({"space": {"sequence.num_layers": [2, 2]}}, "num_layers: a choice is listed twice; expected"),
        ({"space": {"sequence.num_layers": 2}}, "expected low and high, or a list of values"),
        ({"space": {"sequence.num_layers": {"low": 1}}}, "lacks 'space.sequence.num_layers.high'"),
        ({"space": {"sequence.num_layers": {"low": 1, "hi": 2}}}, "did you mean 'high'"),
        ({"space": {"sequence.num_layers": {"low": 1, "high": 2, "lag": True}}}, "did you mean 'log'"),
        ({"space": {"sequence.num_layers": {"low": 2, "high": 1}}}, "num_layers: low 2 is not below high 1;"),
        ({"space": {"sequence.num_layers": {"low": 1.5, "high": 3}}}, "'sequence.num_layers' has the value 1.5"),
        ({"space": {"sequence.num_layers": {"low": 1, "high": 4, "step": 1.5}}}, "expected a whole number"),
        ({"space": {"sequence.dropout": {"low": 0, "high": 0.5, "log": True}}}, "log needs low above 0"),
        ({"space": {"sequence.dropout": {"low": 0, "high": 0.5, "step": 0.2}}}, "step 0.2 does not divide"),
        ({"space": {"sequence.dropout": {"low": 0, "high": 1}}}, "'sequence.dropout' has the value 1"),
        ({"space": {"items.gated": {"low": 0, "high": 1}}}, "'items.gated', which holds no numbers"),
        ({"space": {"training.seed": {"low": 0, "high": 9}}}, "the key 'training.seed' in the search space"),
        ({"space": {"evaluation.policy": ["all", "unseen"]}}, "the key 'evaluation.policy' in the search space"),
        ({"space": {"dataset": ["one", "other"]}}, "the key 'dataset' in the search space"),
        (
            {"objective": "ndcg@7"},
            "the objective 'ndcg@7'; expected a validation metric with a cut-off of 5, 10, 20",
        ),
        ({"objective": "beauty"}, "the objective 'beauty'"),
        ({"recipe": "defualt"}, "no recipe 'defualt'"),
        ({"settings": {"training.epoch": 3}}, "did you mean 'training.epochs'"),
        ({"settings": {"recipe": "ids"}}, "name the recipe 'ids'"),
        ({"trials": 0}, "trials = 0"),
        ({"seeds": []}, "seeds = []; expected 1 or more values"),
        ({"prune_after": -1}, "prune_after = -1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(entries, said, tmp_path, iisan):
    path = write(tmp_path, **entries)
    with pytest.raises(ConfigError) as found:
        read_space(path).base()
    assert said in str(found.value)
    out = tmp_path / "study"
    code, _, errors = iisan("tune", path, "--dataset", tmp_path, "--states", tmp_path, "--out", out)
    assert (code, errors) == (2, f"error: {found.value}\n")
    assert not out.exists()


def test_the_documented_space_is_valid_and_every_key_documented(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    path = tmp_path / "space.yaml"
    path.write_text(re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0], encoding="utf-8")
    assert read_space(path).base().training.epochs == 30
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(Space.model_fields)
