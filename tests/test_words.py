"""Words: how a text is cut into them, and how they reach the tokenizers of all families."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from tov.data.words import word_places
from tov.tasks.classification import Classification, Labelled
from tov.tasks.ner import NamedEntities, Tagged, leading_space
from tov.text.encode import IGNORED

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = ("Ann", "isn't", "in", "Oslo,", "born", "1987", "(", "she", ")", "Zoë")
TAGS = ("B-PER", "O", "O", "B-LOC", "O", "O", "O", "O", "O", "B-PER")
HEAD = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
CORPUS = ["Ann lives in Oslo, isn't she?", "Bo was born in Rome in 1987 (she wasn't)", "the the the lives she in"] * 4


def byte_level(pre: Any, *, trim: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # type: ignore[arg-type]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)  # type: ignore[arg-type]
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], initial_alphabet=[*"▁Zë()?"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama() -> Tokenizer:
    """As Llama 2's: a normalizer puts the sign for a space before the text and in place of each space."""
    tokenizer = metaspace("always")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def wordpiece() -> Tokenizer:
    signs = sorted({sign for text in [*CORPUS, *WORDS] for sign in text if sign != " "})
    vocabulary = ["[UNK]", *signs, *(f"##{sign}" for sign in signs)]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def gpt4() -> Any:
    split = pre_tokenizers.Split(Regex(GPT4), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sequence() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "split, byte level": lambda: byte_level(gpt4()),
    "split, byte level, whole offsets": lambda: byte_level(gpt4(), trim=False),
    "digits, byte level": lambda: byte_level(sequence()),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "prepended": llama,
    "word pieces": wordpiece,
}


def opened(name: str) -> Any:
    """As a model folder has it, through the door that a run uses; the option to put spaces may be ignored."""
    return NamedEntities().open_tokenizer(
        name, lambda **more: PreTrainedTokenizerFast(tokenizer_object=MADE[name](), **more)
    )


def encoded(tokenizer: Any, words: tuple[str, ...] = WORDS, tags: tuple[str, ...] = TAGS, max_length: int = 512) -> Any:
    return NamedEntities().encode(tokenizer, [Tagged(words, tags)], max_length=max_length, labels=HEAD)


@pytest.mark.parametrize("name", MADE)
def test_words_reach_the_model_as_those_of_their_text(name: str) -> None:
    tokenizer = opened(name)
    ids, labels = encoded(tokenizer).row(0)
    if name != "word pieces":  # whose decoder puts a space before each sign
        assert tokenizer.decode(ids.tolist()).strip() == " ".join(WORDS)
    plain = PreTrainedTokenizerFast(tokenizer_object=MADE[name]())
    texts = [" " * lead + " ".join(WORDS) for lead in (0, 1)]
    assert ids.tolist() in [plain(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [HEAD[label] for label in labels if label != IGNORED] == list(TAGS), "a word has no tag, or two"


@pytest.mark.parametrize("name", MADE)
def test_a_tag_stands_at_the_first_token_that_shows_its_word(name: str) -> None:
    tokenizer = opened(name)
    ids, labels = encoded(tokenizer).row(0)
    starts = [at for at, label in enumerate(labels) if label != IGNORED]
    for start, word in zip(starts, WORDS, strict=True):
        shown = tokenizer.decode([ids[start]]).strip()
        begins = bool(shown) and word.startswith(shown.rstrip("\ufffd"))
        assert begins or tokenizer.convert_ids_to_tokens([int(ids[start])]) == ["▁"], f"{word} is tagged at {shown!r}"


def test_a_digit_after_a_space_of_its_own_is_tagged_at_the_digit() -> None:
    tokenizer = opened("digits, byte level")
    ids, labels = encoded(tokenizer, ("in", "1987"), ("O", "B-LOC")).row(0)
    at = labels.tolist().index(HEAD.index("B-LOC"))
    assert tokenizer.decode(ids[at : at + 1].tolist()) == "1", "a causal model has not seen the word at its space"
    assert "Ġ" in tokenizer.convert_ids_to_tokens(ids.tolist())


def test_words_cut_by_the_limit_are_counted_whichever_tokenizer() -> None:
    for name in MADE:
        tokenizer = opened(name)
        whole = encoded(tokenizer)
        assert whole.lost.tolist() == [0], name
        cut = encoded(tokenizer, max_length=6)
        assert len(cut.ids) == 6
        assert cut.sizes[0] + cut.lost[0] == len(WORDS), name
        assert cut.lost[0] > 0, name


def roberta(**options: Any) -> Any:
    vocabulary = {sign: at for at, sign in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    for sign in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[sign] = len(vocabulary)
    return RobertaTokenizer(vocab=vocabulary, merges=[], **options)


def test_roberta_has_a_space_before_each_word_the_first_too() -> None:
    tokenizer = NamedEntities().open_tokenizer("roberta", roberta)
    assert tokenizer.add_prefix_space
    assert not leading_space(tokenizer)
    ids, _ = encoded(tokenizer, ("Ann", "is"), ("O", "O")).row(0)
    assert tokenizer.decode(ids.tolist()) == "<s> Ann is</s>"


def test_a_texts_tokens_beyond_the_limit_are_counted() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece())
    rows = [Labelled("she", "a"), Labelled("lives", "b"), Labelled("Ann lives", "a")]
    made = Classification().encode(tokenizer, rows, max_length=4, labels=("a", "b"))
    assert made.lost.tolist() == [0, 1, 4]
    assert made.sizes.tolist() == [3, 4, 4]
    assert tokenizer.decode(made.row(2)[0].tolist()) == "Ann l"


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_places(text)]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Ann's don’t 'quoted' U.S.", ["Ann's", "don’t", "'", "quoted", "'", "U", ".", "S", "."]),
        ("नई दिल्ली में क्‍षत्रिय।", ["नई", "दिल्ली", "में", "क्‍षत्रिय", "।"]),
        ("தமிழ் நாடு", ["தமிழ்", "நாடு"]),
        ("می‌خواهم بِسْمِ", ["می‌خواهم", "بِسْمِ"]),
        (decomposed("Zoë übte Việt"), [decomposed(word) for word in ("Zoë", "übte", "Việt")]),
        ("กำไร ที่", ["กำ", "ไ", "ร", "ที่"]),
        ("\u1780\u17d2\u179a\u17bb\u1784", ["\u1780\u17d2\u179a\u17bb", "\u1784"]),
        ("東京に住む John2", ["東", "京", "に", "住", "む", "John2"]),
        ("ガス", ["ガ", "ス"]),
        (decomposed("ガス"), [decomposed(word) for word in ("ガ", "ス")]),
        ("서울에서", ["서", "울", "에", "서"]),
        (decomposed("서울"), [decomposed(word) for word in ("서", "울")]),
        ("❤️ 👩‍💻 👍🏽!", ["❤️", "👩‍💻", "👍🏽", "!"]),
        ("Ber\u00adlin a\u200bb", ["Ber\u00adlin", "a", "b"]),
        ("", []),
    ],
    ids=[
        "English", "Hindi", "Tamil", "joiners", "decomposed", "Thai", "Khmer", "Japanese", "Kana", "decomposed Kana", "Korean",
        "decomposed Korean", "emoji", "hyphen and space of no width", "nothing",
    ],
)  # fmt: skip
def test_a_word_keeps_its_marks(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted
