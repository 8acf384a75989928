"""Tables that line up in a terminal, whatever the names are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bert_train_parallel.analysis.tables import Table, render, shorten, visible, width

ANY_TEXT = st.text(max_size=60)


def test_numbers_stand_right_and_words_left() -> None:
    table = Table("Labels", ("", "all"), (("ham", "1,024"), ("spam", "7")), note="Two of them.")
    assert render(table, 80) == "Labels\n          all\n  ham   1,024\n  spam      7\n  Two of them."


def test_a_table_without_heads_has_no_empty_line() -> None:
    assert render(Table("Run", ("", ""), (("model", "minilm"),), left=frozenset({1})), 80) == "Run\n  model  minilm"


def test_the_widest_words_are_shortened_until_the_table_fits() -> None:
    table = Table("T", ("", "predicted", "n"), (("a" * 90, "b" * 20, "12,345"),), left=frozenset({1}))
    lines = render(table, 60).splitlines()[1:]
    assert max(map(width, lines)) <= 60
    assert lines[1].endswith("b" * 20 + "  12,345"), "the shorter column and the number stay whole"


@settings(deadline=None)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=5))
def test_columns_line_up_for_any_names(names: list[tuple[str, str]]) -> None:
    table = Table("T", ("first", "second", "n"), tuple((a, b, "17") for a, b in names), left=frozenset({1}))
    lines = render(table, 70).splitlines()[1:]
    assert len(lines) == len(names) + 1, "no name breaks a line"
    assert len({width(line) for line in lines}) == 1
    assert width(lines[0]) <= 70


@settings(deadline=None)
@given(ANY_TEXT)
def test_nothing_that_could_move_the_cursor_is_printed(text: str) -> None:
    assert all(mark.isprintable() or mark == "\u200d" for mark in visible(text))


@settings(deadline=None)
@given(ANY_TEXT, st.integers(1, 20))
def test_a_shortened_text_fits(text: str, most: int) -> None:
    assert width(shorten(visible(text), most)) <= most
