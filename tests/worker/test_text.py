"""Tokens to text: whole code points, and nothing of a stop string."""

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.worker.text import StopMatcher, TextStream, TokenText, _ByteDecoder, byte_of_char

CHAR_OF_BYTE = {byte: char for char, byte in byte_of_char().items()}
EOS = 300


class FakeTokenizer:
    """Token i < 256 is the byte i, as a byte-level BPE writes it; 300 is a special token."""

    all_special_ids = (EOS,)
    added_tokens_decoder = {EOS: SimpleNamespace(content="<eos>", special=True)}  # noqa: RUF012 - a fake's constant

    def __init__(self, decoder: dict[str, Any] | None = None) -> None:
        state = json.dumps(decoder or {"type": "ByteLevel"}).encode()
        self.backend_tokenizer = SimpleNamespace(decoder=SimpleNamespace(__getstate__=lambda: state))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return "<eos>" if token == EOS else CHAR_OF_BYTE.get(token)

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(t for t in tokens if t != EOS or not skip_special_tokens).decode("utf-8", "replace")


class SpmTokenizer(FakeTokenizer):
    """Token 0 is "▁the", 1 is "▁a", 2 … are bytes written as <0x..>."""

    def __init__(self, strips: bool) -> None:
        decoders = [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip"}]
        super().__init__({"type": "Sequence", "decoders": decoders if strips else decoders[:3]})

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return ("▁the", "▁a", "<0xC3>", "<0xA9>")[token]


def stream(*stops: str, decoder: dict[str, Any] | None = None) -> TextStream:
    return TextStream(TokenText(FakeTokenizer(decoder)).decoder(is_continuation=False), stops)


def push_all(stream: TextStream, tokens: bytes) -> list[str]:
    shown = []
    for token in tokens:
        shown.append(stream.push(token))
        if stream.is_stopped:
            break
    return [*shown, stream.finish()]


@given(st.text(max_size=30))
def test_chaos_092_every_piece_is_whole_code_points_and_the_pieces_are_the_text(text: str) -> None:
    """One token per byte is the worst case: every code point beyond ASCII is split over tokens."""
    pieces = push_all(stream(), text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=30))
def test_a_tokenizer_of_another_kind_gives_the_same_text(text: str) -> None:
    """A text that really ends with U+FFFD cannot be told from half a code point there, and is left out."""
    assert "".join(push_all(stream(decoder={"type": "WordPiece"}), text.encode())) == text


def test_bytes_that_are_no_text_are_shown_as_such_and_do_not_hold_up_what_follows() -> None:
    assert "".join(push_all(stream(), b"a\xff\xfeb")) == "a\ufffd\ufffdb"
    assert "".join(push_all(stream(decoder={"type": "WordPiece"}), b"a\xff\xff\xff\xff\xff\xff\xff\xff\xffb")).endswith(
        "b"
    )


def test_half_a_code_point_at_the_end_is_dropped() -> None:
    assert push_all(stream(), "é".encode()[:1]) == ["", ""]


def test_a_special_token_is_never_shown() -> None:
    text = stream()
    assert text.push(EOS) + text.push(ord("a")) == "a"
    assert stream(decoder={"type": "WordPiece"}).push(EOS) == ""


def test_logprobs_name_special_tokens_and_half_code_points() -> None:
    texts = TokenText(FakeTokenizer())
    assert [texts.text_of(t) for t in (EOS, 65, 0xC3, 299)] == ["<eos>", "A", "\ufffd", ""]


@pytest.mark.parametrize(
    ("strips", "is_continuation", "expected"),
    [(True, False, "the a"), (True, True, " the a"), (False, False, " the a")],
)
def test_sentencepiece_loses_its_first_space_only_in_an_answer_of_its_own(
    strips: bool, is_continuation: bool, expected: str
) -> None:
    """The text that goes on from a raw prompt needs its leading space: prompt + text is the document."""
    decoder = TokenText(SpmTokenizer(strips)).decoder(is_continuation=is_continuation)
    assert decoder.push(0) + decoder.push(1) == expected


def test_sentencepiece_bytes_become_one_code_point() -> None:
    decoder = TokenText(SpmTokenizer(True)).decoder(is_continuation=True)
    assert [decoder.push(2), decoder.push(3)] == ["", "é"]


def test_a_stop_string_split_over_tokens_never_leaks() -> None:
    pieces = push_all(stream("<end>"), b"hello <end> more")
    assert "".join(pieces) == "hello "
    assert all("<" not in piece for piece in pieces)


def test_a_stop_string_split_inside_a_code_point_never_leaks() -> None:
    assert "".join(push_all(stream("🙂"), "ab🙂c".encode())) == "ab"


def test_text_that_only_began_like_a_stop_string_is_shown_after_all() -> None:
    assert "".join(push_all(stream("<end>"), b"a <en b")) == "a <en b"


def test_held_text_is_flushed_at_the_end() -> None:
    assert push_all(stream("<end>"), b"a<en") == ["a", "", "", "", "<en"]


@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    """Whatever the tokens, what is shown is what one character at a time shows, and holds no stop string."""

    def shown(parts: list[str]) -> tuple[str, bool]:
        matcher, out = StopMatcher(stops), ""
        for part in parts:
            text, is_stopped = matcher.push(part)
            out += text
            if is_stopped:
                return out, True
        return out + matcher.flush(), False

    text, is_stopped = shown(pieces)
    assert (text, is_stopped) == shown(list("".join(pieces)))
    assert not any(stop in text for stop in stops)
    assert "".join(pieces).startswith(text)


PIECES = ("🙂", "🎉", "é", "日本", "a", "<", "end>", " ")


@given(
    st.lists(st.sampled_from(PIECES), max_size=20),
    st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join), min_size=1, max_size=3),
    st.lists(st.integers(0, 200), max_size=60),
)
def test_no_cut_through_an_emoji_or_a_stop_string_ever_shows(
    pieces: list[str], stops: list[str], cuts: list[int]
) -> None:
    """Tokens are any bytes: each thing shown is whole, and goes on the text before the first stop that is complete."""
    text = "".join(pieces)
    raw = text.encode()
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    tokens = [raw[a:b] for a, b in pairwise(places)]
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    answer = TextStream(_ByteDecoder(tokens.__getitem__, strips_first_space=False), stops)
    shown = ""
    for token in range(len(tokens)):
        piece = answer.push(token)
        assert "\ufffd" not in piece
        shown += piece
        assert expected.startswith(shown)
        if answer.is_stopped:
            break
    assert answer.is_stopped == bool(ends)
    assert shown + answer.finish() == expected
