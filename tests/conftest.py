"""Fixtures for all tests; the naive reader here shares no code with the readers under test."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import polars as pl
import pytest
import torch

from iisan.config import Config
from iisan.data.sequences import Sequences
from iisan.data.splits import Split, leave_one_out

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Models and batches are so small that synchronising a second thread takes longer than the work.
torch.set_num_threads(1)

SCIENTIFIC = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "scientific"


@pytest.fixture(scope="session", autouse=True)
def unmeasured_precision() -> Iterator[None]:
    """Precision ``auto`` is fp32 in this process, whatever its products take; a test may set another timer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iisan.encoders.precision.time_products", lambda *_: {"fp32": [1.0], "bf16": [1.0]})
        yield


@dataclass(frozen=True)
class Scientific:
    item_ids: pl.Series
    titles: pl.Series
    user_ids: pl.Series
    sequences: Sequences
    split: Split


@pytest.fixture(scope="session")
def scientific_folder() -> Path:
    """Folder of the Amazon tables "Industrial & Scientific"."""
    if not SCIENTIFIC.is_dir():
        pytest.skip(f"the Scientific data is not at {SCIENTIFIC}")
    return SCIENTIFIC


@pytest.fixture(scope="session")
def scientific(scientific_folder: Path) -> Scientific:
    """The last 13 interactions of every user and their items, split leave-one-out."""

    def table(name: str) -> list[list[str]]:
        lines = (scientific_folder / name).read_text(encoding="utf-8").splitlines()
        return [line.split("\t") for line in lines]

    users = [(user, items.split()[-13:]) for user, items in table("users.tsv")]
    occurring = {item for _, items in users for item in items}
    items = [(item, title) for item, title in table("items.tsv") if item in occurring]
    index = {item: position for position, (item, _) in enumerate(items)}
    sequences = Sequences(
        np.cumsum([0, *(len(items) for _, items in users)]),
        np.array([index[item] for _, items in users for item in items], dtype=np.int32),
    )
    return Scientific(
        item_ids=pl.Series("item_id", [item for item, _ in items]),
        titles=pl.Series("text", [title for _, title in items]),
        user_ids=pl.Series("user_id", [user for user, _ in users]),
        sequences=sequences,
        split=leave_one_out(sequences, len(items)),
    )


WORDS = ["red", "blue", "green", "small", "large", "pump", "valve", "glove", "tape", "box", "of", "steel", "mask"]


VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}

SaveModel = Callable[..., Path]


@pytest.fixture(scope="session")
def save_model() -> SaveModel:
    """A function that writes a tiny random model with its processors."""
    import transformers as hf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    def save(
        folder: Path,
        config: Any,
        template: str | None = None,
        padded: bool = True,
        image_processor: dict[str, Any] | None = None,
        tokenizer: Callable[[], Any] | None = None,
        **tokenizer_options: Any,
    ) -> Path:
        """Write a model with a word-level tokenizer of a ``template`` ("[CLS] $A [SEP]"), another one, or none."""
        torch.manual_seed(len(folder.name))
        model = hf.AutoModel.from_config(config)
        for parameter in model.parameters():  # with the usual 0.02, tokens would hardly differ
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        if template is not None:
            words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
            words.normalizer = normalizers.Lowercase()
            words.pre_tokenizer = pre_tokenizers.Whitespace()
            ends = [("[CLS]", 2), ("[SEP]", 3)]
            words.post_processor = processors.TemplateProcessing(template, special_tokens=ends)
            tokens = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
            if padded:
                tokens |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
            tokens |= tokenizer_options
            hf.PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer().save_pretrained(folder)
        if image_processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
        return folder

    return save


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, save_model: SaveModel) -> dict[str, Path]:
    """Folders of tiny random models with their processors; gpt2 has no pad token."""
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    positions = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 40}
    text = sizes | positions
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    image = sizes | {"image_size": 16, "patch_size": 8}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    distil = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
    configs = {
        "bert": hf.BertConfig(**text),
        "roberta": hf.RobertaConfig(**text | special),
        "deberta": hf.DebertaConfig(**text),
        "deberta-v2": hf.DebertaV2Config(**text | relative),
        "distilbert": hf.DistilBertConfig(**positions | distil),
        "mpnet": hf.MPNetConfig(**text | special),
        "gpt2": hf.GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=40, **positions | special),
        "vit": hf.ViTConfig(**image),
        "clip": hf.CLIPConfig(text_config=text | special, vision_config=image, projection_dim=16),
        "siglip": hf.SiglipConfig(text_config=text | special, vision_config=image),
        "deit": hf.DeiTConfig(**image),
        "dinov2": hf.Dinov2Config(**image | {"mlp_ratio": 2}),
    }
    folders = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp("models") / name
        template = None if name in ("vit", "deit", "dinov2") else "$A" if name == "gpt2" else "[CLS] $A [SEP]"
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
        image = processor if name in ("vit", "clip", "siglip", "deit", "dinov2") else None
        folders[name] = save_model(folder, config, template, padded=name != "gpt2", image_processor=image)
    return folders


@dataclass(frozen=True)
class Prepared:
    """Folders of a tiny dataset, its cached states and their encoders."""

    dataset: Path
    states: Path
    text: Path
    image: Path

    def config(self, method: str, *overrides: str) -> Config:
        """A recipe on this dataset and these states, with overrides."""
        from iisan.recipes import recipe

        folders = {"dataset": self.dataset, "states": self.states}
        return recipe(method).model_copy(update=folders).override(overrides)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Iterator[Prepared]:
    """30 items (some without text, image or both), 50 users, timestamps; states of a tiny BERT and a tiny ViT.

    All tests share these folders, so no test may write into them.
    """
    from PIL import Image

    from iisan.data.dataset import Dataset
    from iisan.states.caching import cache
    from pictures import encoded, noise

    rng = np.random.default_rng(0)

    titles = [" ".join(rng.choice(WORDS, size=4)) for _ in range(30)]
    pictures = [encoded(Image.fromarray(noise(rng, 16, 16))) for _ in range(30)]
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(30)],
            "title": [None if n in (3, 5) else title for n, title in enumerate(titles)],
            "image": [None if n in (4, 5) else image for n, image in enumerate(pictures)],
        }
    )
    users = np.repeat(np.arange(50), rng.integers(4, 16, size=50))
    interactions = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in users],
            "item_id": [f"i{item}" for item in np.minimum(rng.geometric(0.1, len(users)) - 1, 29)],
            "timestamp": rng.integers(1_600_000_000, 1_700_000_000, len(users)),
        }
    )
    folder = tmp_path_factory.mktemp("prepared")
    dataset = Dataset.from_frames(items, interactions).save(folder / "dataset")
    text, image = str(model_folders["bert"]), str(model_folders["vit"])
    cache(
        dataset, folder / "states", {"text": text, "image": image}, dtype="fp32", precision="fp32", last_n_layers=2
    )
    before = sorted(folder.rglob("*"))
    yield Prepared(folder / "dataset", folder / "states", Path(text), Path(image))
    assert sorted(folder.rglob("*")) == before, "a test wrote into the shared folders"


@pytest.fixture(scope="session")
def anchored_run(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a learned part and an anchor; no test may write into it."""
    from iisan.train.run import train

    out = tmp_path_factory.mktemp("anchored") / "run"
    train(prepared.config("default", "training.epochs=1", "training.batch_size=16", "loss.negatives=5"), out)
    return out


@pytest.fixture
def iisan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns exit code, standard output, standard error."""
    from iisan import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iisan", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
