"""The tokenizer, against ids that transformers' XLMRobertaTokenizer made from the same model file."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.backbone import tokenizer as module
from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.errors import TokenizerError

pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: make test")

# Made by the library that the file names; transformers 4.44 is the last line that reads such a model file.
GOLDEN: dict[str, Any] = json.loads(
    Path(__file__).with_name("golden").joinpath("tokenizer.json").read_text(encoding="utf-8")
)
DOG = "A photo of a dog."


@pytest.fixture(scope="module")
def model_file(shared_data: Path) -> Path:
    path = shared_data / "beit3.spm"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> BEiT3Tokenizer:
    return BEiT3Tokenizer(model_file)


def train_model(**options: Any) -> bytes:
    """Train a tiny SentencePiece model."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    sentences = iter(["a dog runs over the red street"] * 20 + ["two people ride a bike"] * 20)
    settings = {"vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2, **options}
    SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **settings)
    return model.getvalue()


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"), GOLDEN["max_length_64"], ids=range(len(GOLDEN["max_length_64"]))
)
def test_ids_are_those_of_transformers(tokenizer: BEiT3Tokenizer, text: str, expected: list[int]) -> None:
    assert tokenizer.encode(text) == expected


@pytest.mark.parametrize(("text", "expected"), GOLDEN["max_length_8"], ids=["fits", "short", "cut"])
def test_truncation_is_that_of_transformers(
    tokenizer: BEiT3Tokenizer, text: str, expected: list[int]
) -> None:
    assert tokenizer.encode(text, max_length=8) == expected


def test_the_golden_file_is_for_the_official_model(tokenizer: BEiT3Tokenizer) -> None:
    assert GOLDEN["model_sha256"] == module.OFFICIAL_SHA256
    assert tokenizer.is_official
    assert len(GOLDEN["max_length_64"]) >= 60


def test_special_ids_are_those_of_transformers(tokenizer: BEiT3Tokenizer) -> None:
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("mask", "pad", "bos", "eos", "unk")}
    assert ids == GOLDEN["special"]
    assert tokenizer.vocab_size == 64_010


@pytest.mark.parametrize(
    "special", ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a <mask>b", "</s></s>", "▁<s>"]
)
def test_a_text_cannot_inject_special_ids(tokenizer: BEiT3Tokenizer, special: str) -> None:
    inner = tokenizer.encode(special)[1:-1]
    assert len(inner) > 1
    assert not {0, 1, 2, 3, tokenizer.mask_id} & set(inner)
    assert special.replace("▁", "") in tokenizer.decode(inner)


@pytest.mark.parametrize("max_length", [2, 3, 64, 1022])
def test_truncation_keeps_both_ends(tokenizer: BEiT3Tokenizer, max_length: int) -> None:
    ids = tokenizer.encode("dog " * 2000, max_length=max_length)
    assert len(ids) == max_length
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_ids_stay_within_the_table(tokenizer: BEiT3Tokenizer) -> None:
    code_points = (chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000)
    ids = tokenizer._pieces(" ".join(code_points))
    assert min(ids) >= tokenizer.unk_id
    assert max(ids) < tokenizer.mask_id


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_padded_at_the_end(tokenizer: BEiT3Tokenizer) -> None:
    ids, padding_mask, truncated = tokenizer.batch([DOG, "", "two people riding a bike"])
    assert ids.dtype == np.int64
    assert padding_mask.dtype == np.bool_
    assert ids.tolist() == [
        [0, 94, 1127, 9, 10, 1152, 5, 2],
        [0, 2, 1, 1, 1, 1, 1, 1],
        [0, 97, 93, 3619, 10, 2753, 2, 1],
    ]
    np.testing.assert_array_equal(padding_mask, ids == tokenizer.pad_id)
    assert truncated == 0


@pytest.mark.parametrize(("max_length", "truncated"), [(8, 1), (7, 2), (2, 2), (64, 0)])
def test_cut_texts_are_counted(tokenizer: BEiT3Tokenizer, max_length: int, truncated: int) -> None:
    batch = tokenizer.batch([DOG, "", DOG + " And a cat."], max_length=max_length)
    assert batch.truncated == truncated


def test_a_batch_has_the_length_asked_for(tokenizer: BEiT3Tokenizer) -> None:
    assert tokenizer.batch([DOG], pad_to=64).ids.shape == (1, 64)
    assert tokenizer.batch([], pad_to=64).padding_mask.shape == (0, 64)
    assert tokenizer.batch([]).ids.shape == (0, 0)


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DOG, "two people riding a bike", "Ein Hund läuft über die Straße.", ""])
def test_decoding_gives_the_text_back(tokenizer: BEiT3Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.batch([text], pad_to=64).ids[0]) == text


def test_unknown_pieces_are_visible(tokenizer: BEiT3Tokenizer) -> None:
    assert "⁇" in tokenizer.decode(tokenizer.encode("\U00013080"))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, 64_002, 10**9])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: BEiT3Tokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=f"{token} is outside 0 to 64001"):
        tokenizer.decode([0, token])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not NoneType"),
        (b"bytes", "not bytes"),
        (["a list"], "not list"),
        ("\ud800", "not valid Unicode"),
        ("x" * (module.MAX_CHARACTERS + 1), "1000001 characters, at most 1000000"),
    ],
    ids=["none", "bytes", "list", "surrogate", "too-long"],
)
def test_what_is_no_text_is_refused(tokenizer: BEiT3Tokenizer, text: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer.encode(text)
    with pytest.raises(TokenizerError, match=message):
        tokenizer.batch([DOG, text])


@pytest.mark.parametrize("max_length", [1, 0, -5, 1023, 64.0, True, None])
def test_lengths_out_of_range_are_refused(tokenizer: BEiT3Tokenizer, max_length: Any) -> None:
    with pytest.raises(TokenizerError, match="from 2 to 1022"):
        tokenizer.encode(DOG, max_length=max_length)
    with pytest.raises(TokenizerError, match="from 2 to 1022"):
        tokenizer.batch([DOG], max_length=max_length)


@pytest.mark.parametrize(
    ("texts", "pad_to", "message"),
    [([DOG], 63, "below max_length 64"), ([DOG], 1023, "pad_to is 1023"), (DOG, None, "put it into a list")],
)
def test_unusable_batches_are_refused(
    tokenizer: BEiT3Tokenizer, texts: Any, pad_to: int | None, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer.batch(texts, pad_to=pad_to)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.spm does not exist"):
        BEiT3Tokenizer(tmp_path / "nowhere.spm")
    with pytest.raises(TokenizerError, match="does not exist"):
        BEiT3Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a model" * 50, bytes(range(256)) * 40], ids=["empty", "text", "bytes"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.spm"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"other\.spm is not a SentencePiece model"):
        BEiT3Tokenizer(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_model_is_refused(tmp_path: Path, model_file: Path, share: float) -> None:
    content = model_file.read_bytes()
    path = tmp_path / "truncated.spm"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TokenizerError, match="is not a SentencePiece model"):
        BEiT3Tokenizer(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.spm"
    with path.open("wb") as file:
        file.truncate(module.MAX_MODEL_BYTES + 1)
    with pytest.raises(TokenizerError, match="at most"):
        BEiT3Tokenizer(path)


def test_another_model_is_accepted_and_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "own.spm"
    path.write_bytes(train_model())
    own = BEiT3Tokenizer(path)
    assert not own.is_official
    assert own.vocab_size == own.mask_id + 9
    assert own.decode(own.encode("a red dog")) == "a red dog"


@pytest.mark.parametrize("options", [{"bos_id": -1}, {"unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2}])
def test_another_order_of_special_pieces_is_refused(tmp_path: Path, options: dict[str, int]) -> None:
    path = tmp_path / "own.spm"
    path.write_bytes(train_model(**options))
    with pytest.raises(TokenizerError, match="as its pieces 0, 1, 2"):
        BEiT3Tokenizer(path)


def test_the_missing_package_is_named(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match="pip install"):
        BEiT3Tokenizer(model_file)


def test_the_module_itself_needs_no_torch() -> None:
    script = (
        "import runpy, sys; sys.modules['torch'] = None\n"
        f"assert 'BEiT3Tokenizer' in runpy.run_path({str(module.__file__)!r})"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
