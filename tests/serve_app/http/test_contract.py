"""The request body: what is accepted, what is refused, and that the refusal names the place."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.params import ScoreParams, parse_params
from pipeline.errors import InvalidRequest, LimitExceeded, ServiceError
from serve_app.http.contract import INPUT_DATA_MISSING, parse_score_request

MODEL_CARD_SAMPLE = {
    "input_data": {
        "columns": ["image"],
        "index": [0, 1],
        "data": [base64.encodebytes(b"first" * 40).decode(), base64.encodebytes(b"second" * 40).decode()],
    },
    "params": {},
}


def parse(document):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_score_request(body)


def table(**fields):
    return {"input_data": {"columns": ["image"], "data": ["a"], **fields}}


def test_model_card_sample_is_read():
    """The sample request of the model card, base64 with line breaks, both images in order."""
    request = parse(MODEL_CARD_SAMPLE)
    assert request.images == MODEL_CARD_SAMPLE["input_data"]["data"]
    assert request.params == ScoreParams()


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(table(data=["a", "b"]), id="flat data"),
        pytest.param(table(data=[["a"], ["b"]]), id="rows of one cell"),
        pytest.param(table(data=["a", "b"], index=[5, "x"]), id="index of any labels"),
        pytest.param(table(data=["a", "b"]) | {"anything": 1}, id="unknown top-level key"),
        pytest.param(table(data=["a", "b"]) | {"params": None}, id="params null"),
        pytest.param(table(columns=["id", "image"], data=[[1, "a"], [None, "b"]]), id="another column, ignored as MLflow does"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(table(data=["a", "b"])).encode(), id="a byte order mark"),
    ],
)
def test_accepted_shapes(document):
    """Every shape that AzureML's clients send."""
    assert parse(document).images == ["a", "b"]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        pytest.param(b"", "empty", id="empty body"),
        pytest.param(b"{", "not valid JSON", id="not JSON"),
        pytest.param(b'{"input_data": NaN}', "not valid JSON", id="NaN"),
        pytest.param(b"[]", "must be a JSON object, got a list", id="a list"),
        pytest.param({}, INPUT_DATA_MISSING, id="no input_data"),
        pytest.param({"input_data": None}, INPUT_DATA_MISSING, id="null input_data"),
        pytest.param({"input_data": "x"}, "'input_data' must be an object", id="input_data a string"),
        pytest.param({"input_data": {"data": ["a"]}}, "'input_data.columns'", id="columns missing"),
        pytest.param(table(columns=["image", "image"]), "'input_data.columns'", id="image twice"),
        pytest.param(table(columns=["picture"]), "'input_data.columns'", id="no column image"),
        pytest.param(table(columns="image"), "'input_data.columns'", id="columns a string"),
        pytest.param(table(columns=["image", "id"]), "'input_data.data[0]' must hold 2 cells", id="flat data of two columns"),
        pytest.param(
            table(columns=["image", "id"], data=[["a"]]), "'input_data.data[0]' must hold 2 cells", id="row of too few cells"
        ),
        pytest.param(
            table(columns=["id", "image"], data=[["a", 1]]), "'input_data.data[0][1]' must be a string", id="cell of its column"
        ),
        pytest.param(b"\xef\xbb\xbf", "not valid JSON", id="a byte order mark alone"),
        pytest.param(table(data="a"), "'input_data.data'", id="data a string"),
        pytest.param({"input_data": {"columns": ["image"]}}, "'input_data.data'", id="data missing"),
        pytest.param(table(index=[0, 1]), "'input_data.index' has 2 entries", id="index length"),
        pytest.param(table(index=3), "'input_data.index' must be a list", id="index a number"),
        pytest.param(table(extra=1), "unknown key(s) 'extra'", id="unknown key"),
        pytest.param(table(data=["a", ["b", "c"]]), "'input_data.data[1]' must hold one cell, got 2", id="row of two cells"),
        pytest.param(table(data=[[]]), "'input_data.data[0]' must hold one cell, got 0", id="empty row"),
        pytest.param(table(data=["a", 7]), "'input_data.data[1]' must be a string", id="a number as cell"),
        pytest.param(table(data=[[None]]), "'input_data.data[0][0]' must be a string", id="null in a row"),
        pytest.param(table() | {"params": []}, "'params' must be an object", id="params a list"),
        pytest.param(table() | {"params": {"treshold": 1}}, "known keys: score_threshold", id="unknown param lists the known"),
        pytest.param(table() | {"params": {"score_threshold": 2}}, "'params.score_threshold'", id="threshold out of range"),
        pytest.param(table() | {"params": {"score_threshold": "0.5"}}, "'params.score_threshold'", id="threshold a string"),
        pytest.param(table() | {"params": {"max_detections": 0}}, "'params.max_detections'", id="no detections"),
        pytest.param(table() | {"params": {"max_detections": True}}, "'params.max_detections'", id="detections a boolean"),
        pytest.param(table() | {"params": {"holes": "keep"}}, "'params.holes'", id="unknown holes"),
        pytest.param(table() | {"params": {"on_error": "ignore"}}, "'params.on_error'", id="unknown on_error"),
    ],
)
def test_refused_with_the_place_named(document, place):
    """A broken contract is a 400 that says where."""
    with pytest.raises(InvalidRequest) as caught:
        parse(document)
    assert place in caught.value.message
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", id="a million lists"),
        pytest.param(b'{"a":[' + b"0," * 1_000_000 + b"0]}", id="a million numbers"),
        pytest.param(b'{"a":' * 100_001, id="objects in objects"),
    ],
)
def test_small_text_of_many_values(body):
    """Text that would grow tenfold in memory is refused before it is read."""
    with pytest.raises(LimitExceeded, match="100000 JSON values"):
        parse(body)


def test_commas_in_an_image_are_no_values():
    """What stands in a long string is one value, whatever it holds."""
    assert parse(table(data=["a," * 200_000])).images == ["a," * 200_000]


@pytest.mark.parametrize(
    "document",
    [
        {"input_data": {"k" * 1_000_000: 1}},
        {"input_data": {f"k{n}": 1 for n in range(1000)}},
        table() | {"params": {"p" * 1_000_000: 1}},
        table() | {"params": {"mask_format": "m" * 1_000_000}},
    ],
)
def test_messages_stay_short(document):
    """What a caller sent is not sent back to it by the megabyte."""
    with pytest.raises(InvalidRequest) as caught:
        parse(document)
    assert len(caught.value.message) < 600


def test_deep_nesting_is_a_plain_400():
    """A body of 50,000 brackets neither crashes nor hangs the parser."""
    with pytest.raises(InvalidRequest, match="depth"):
        parse(b'{"input_data":' + b"[" * 50_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["columns", "data", "index", "image", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(input_data=JSON, params=JSON)
def test_any_json_gives_a_request_or_a_400(input_data, params):
    """No JSON whatever gets anything but a request or an error of ours out of the parser."""
    try:
        request = parse({"input_data": input_data, "params": params})
    except ServiceError as error:
        assert error.status in (400, 413)
    else:
        assert all(isinstance(image, str) for image in request.images)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_400(body):
    """Random bytes are a 400, never another exception."""
    with pytest.raises(InvalidRequest):
        parse(body)


def test_params_are_checked_when_made_by_hand():
    """Python callers get the same check."""
    assert parse_params({"labels": ["person"], "decimals": 4}).labels == ["person"]
    with pytest.raises(ValueError, match="score_threshold"):
        ScoreParams(score_threshold=7)
