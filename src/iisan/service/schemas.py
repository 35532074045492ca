"""What the service reads and writes, as JSON."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: Longest history, largest list, most characters of an id, most items that are added by a request.
MAX_HISTORY, MAX_K, MAX_ID, MAX_ADDED = 10_000, 1_000, 512, 100
#: Most columns, and values of one, in conditions and limits of a list; most further columns of an added item.
MAX_COLUMNS, MAX_VALUES, MAX_ADDED_COLUMNS = 20, 50, 100
#: Most characters of a text, and of an image in base64.
MAX_TEXT, MAX_IMAGE = 20_000, 8 * 2**20


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("should be valid Unicode") from None
    return text


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_ADDED_COLUMNS:
        raise ValueError(f"at most {MAX_ADDED_COLUMNS} fields should be given")
    return value


#: Of an object of many fields, none is looked at: an error of each would keep the service busy.
Few = BeforeValidator(_few)
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID), AfterValidator(_encodable)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_ID), AfterValidator(_encodable)]
#: 64 bits, with a sign or without, as columns hold them.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Value = bool | Whole | Number | Text
Values = Annotated[list[Value], Field(max_length=MAX_VALUES)]
#: The first wrong id is enough of an error; a body holds 100,000.
Ids = Annotated[list[Id], Field(fail_fast=True)]
RunName = Annotated[Name | None, Field(description="Name of a served run; by default the first.")]


class Strict(BaseModel):
    """An object without unknown fields and without conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        return _few(value)


class Request(Strict):
    """A body of a request."""

    run: RunName = None


class HistoryRequest(Request):
    """A history, or a user of the dataset."""

    history: Ids | None = Field(
        None,
        min_length=1,
        max_length=MAX_HISTORY,
        description="Item ids, oldest first; unknown ones do not count.",
    )
    user: Id | None = Field(None, description="User of the dataset, instead of a history.")

    @model_validator(mode="after")
    def _one(self) -> "HistoryRequest":
        if (self.history is None) == (self.user is None):
            raise ValueError("exactly one of history and user should be given")
        return self


class RecommendRequest(HistoryRequest):
    """Body of ``POST /recommend``."""

    k: int = Field(10, ge=1, le=MAX_K, description="Number of items.")
    filter_viewed: bool = Field(True, description="Whether items of the history are left out.")
    items_to_recommend: Ids | None = Field(None, min_length=1, description="The only items that are listed.")
    items_to_exclude: Ids | None = Field(None, description="Items that may not be listed.")
    where: Annotated[dict[Name, Value | Values], Few] | None = Field(
        None,
        max_length=MAX_COLUMNS,
        description="Conditions on columns of the items: column -> value, or alternatives.",
    )
    max_per: Name | Annotated[dict[Name, Count], Few, Field(max_length=MAX_COLUMNS)] | None = Field(
        None, description="Column whose values occur once at most in the list, or column -> number of times."
    )
    near_duplicates: Number | None = Field(
        None, ge=0, lt=1, description="Cosine of anchors above which an item is left out because of a better one."
    )

    terms: bool = Field(False, description="Whether each score is given as a sum, too.")

    def selection(self) -> str:
        """Return the arguments of ``ListMaker.select`` as JSON."""
        return self.model_dump_json(exclude={"run", "history", "user", "k", "terms"}, exclude_defaults=True)


class ExplainRequest(HistoryRequest):
    """Body of ``POST /explain``."""

    item: Id = Field(description="Item whose score is explained.")


class NewItem(Strict):
    """An item to add."""

    item_id: Id
    text: Text | None = None
    image: Annotated[str, Field(max_length=MAX_IMAGE)] | None = Field(None, description="Image file in base64.")
    columns: Annotated[dict[Name, Value | None], Few] = Field(
        default_factory=dict, max_length=MAX_ADDED_COLUMNS, description="Further columns of the items."
    )


class AddRequest(Request):
    """Body of ``POST /items``."""

    items: list[NewItem] = Field(min_length=1, max_length=MAX_ADDED)
    update: bool = Field(False, description="Whether items that the run has are updated; else they are refused.")


class Item(BaseModel):
    """An item of a run."""

    item_id: str
    text: str | None
    image: str | None = Field(description="Path of its image in the service.")


class ItemDetails(Item):
    """An item with the further columns of the catalogue."""

    run: str
    columns: Mapping[str, Any]


class Found(BaseModel):
    """Items that a search found."""

    items: list[Item]
    total: int = Field(description="Number of items found, of which the first are listed.")


class ScoredItem(Item):
    """An item of a list."""

    score: float
    rank: int


class Similar(BaseModel):
    """Items similar to another one."""

    run: str
    items: list[ScoredItem]


class RecommendedItem(ScoredItem):
    """An item of a list, and where its score comes from if that is asked for."""

    terms: Mapping[str, float] | None = None


class Recommendations(BaseModel):
    """A list for a history."""

    run: str
    items: list[RecommendedItem]
    unknown: list[str] = Field(description="Items of the history that the run does not know.")
    note: str | None


class PastItem(Item):
    """An item of the history, and its effect on the score; see :class:`iisan.runs.explain.HistoryItem`."""

    anchor: Mapping[str, float]
    change: float | None
    similarity: Mapping[str, float | None]
    model_similarity: float | None


class Reasons(BaseModel):
    """Why an item has its score; see :class:`iisan.runs.explain.Explanation`."""

    run: str
    item_id: str
    text: str | None
    score: float
    rank: int | None
    tied: int
    policy: str
    num_items: int
    terms: Mapping[str, float]
    history: list[PastItem]
    interactions: int
    nearest: Mapping[str, list[ScoredItem]] = Field(description="Nearest items by model and by modality.")
    unknown: list[str]


class Added(BaseModel):
    """What a request added; see :class:`iisan.serve.items.Change`."""

    added: int
    updated: int
    outside: Mapping[str, float]
    seconds: float


class Removed(BaseModel):
    """What a request removed."""

    removed: int


class Column(BaseModel):
    """A column of the items on which there can be conditions."""

    type: str
    values: list[Any] = Field(description="Its most common values.")


class RunFacts(BaseModel):
    """A served run."""

    name: str
    recipe: str
    num_items: int
    modalities: list[str]
    similar_by: list[str]
    columns: Mapping[str, Column]
    images: bool
    metrics: Mapping[str, float]
    protocol: str
    trained: str


class Runs(BaseModel):
    """The served runs, the first of which is the default."""

    runs: list[RunFacts]
    adding: bool = Field(description="Whether items can be added and removed, with the token.")


class Status(BaseModel):
    """State of the service."""

    status: str


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str
