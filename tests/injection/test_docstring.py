"""The entry of an injected parameter goes out of a docstring, and nothing else does."""

from __future__ import annotations

import inspect
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gantry_state.injection.docstring import without_parameters


def without(doc, *names):
    return without_parameters(textwrap.dedent(doc).strip("\n"), names or ("memory",))


def expected(doc):
    return textwrap.dedent(doc).strip("\n")


@pytest.mark.parametrize(
    "heading",
    ["Args", "Arguments", "Parameters", "Params", "Keyword Args", "Keyword Arguments", "Other Parameters"],
)
def test_google_entry_goes(heading):
    doc = f"""
        Do it.

        {heading}:
            item: What.
            memory: Secret.
            limit (int): How many.

        Returns:
            The items.
        """

    assert without(doc) == expected(doc.replace("            memory: Secret.\n", ""))


@pytest.mark.parametrize(
    "entry",
    [
        "memory: Secret.",
        "memory (dict): Secret.",
        "memory (dict[str, int], optional): Secret.",
        "*memory: Secret.",
        "``memory``: Secret.",
        "memory :",
    ],
)
def test_google_entry_goes_however_it_is_written(entry):
    assert without(f"Do it.\n\nArgs:\n    item: What.\n    {entry}\n    limit: How many.") == (
        "Do it.\n\nArgs:\n    item: What.\n    limit: How many."
    )


def test_entry_of_many_lines_goes_whole():
    doc = """
        Do it.

        Args:
            memory: Secret,
                and more of it:
                    deeper,

                and after a blank line.
            item: What,
                and more.
        """

    assert without(doc) == expected("""
        Do it.

        Args:
            item: What,
                and more.
        """)


def test_last_entry_goes_and_what_follows_keeps_its_distance():
    doc = """
        Do it.

        Args:
            item: What.
            memory: Secret.

        Raises:
            ValueError: If memory is full.
        """

    assert without(doc) == expected("""
        Do it.

        Args:
            item: What.

        Raises:
            ValueError: If memory is full.
        """)


def test_numpy_entry_goes():
    doc = """
        Do it.

        Parameters
        ----------
        item : str
            What.
        memory : dict
            Secret,

            and more.
        limit
            How many.

        Returns
        -------
        list
            The items in memory.
        """

    assert without(doc) == expected("""
        Do it.

        Parameters
        ----------
        item : str
            What.
        limit
            How many.

        Returns
        -------
        list
            The items in memory.
        """)


def test_sphinx_fields_go():
    doc = """
        Do it.

        :param item: What.
        :type item: str
        :param memory: Secret,
            and more.
        :type memory: dict
        :param dict memory: Secret again.
        :keyword memory: And again.
        :param limit: How many.
        :returns: What is in memory.
        :raises ValueError: If memory is full.
        """

    assert without(doc) == expected("""
        Do it.

        :param item: What.
        :type item: str
        :param limit: How many.
        :returns: What is in memory.
        :raises ValueError: If memory is full.
        """)


@pytest.mark.parametrize(
    "doc",
    [
        "Do it.\n\nArgs:\n    memory: Secret.\n\nReturns:\n    It.",
        "Do it.\n\nParameters\n----------\nmemory : dict\n    Secret.\n\nReturns\n-------\nIt.",
        "Do it.\n\n:param memory: Secret.\n\nReturns: It.",
    ],
    ids=["google", "numpy", "sphinx"],
)
def test_section_left_empty_goes_whole(doc):
    kept = without(doc)

    assert "Args" not in kept
    assert "Parameters" not in kept
    assert "Secret" not in kept
    assert kept.startswith("Do it.")
    assert "It." in kept.split("Returns", 1)[1]


def test_several_injected_names_go():
    doc = """
        Do it.

        Args:
            one: Secret.
            item: What.
            two: Secret.
            other: It.
        """

    assert without(doc, "one", "two") == expected("""
        Do it.

        Args:
            item: What.
            other: It.
        """)


def test_section_of_only_injected_names_goes_whole():
    assert "Args" not in without("Do it.\n\nArgs:\n    one: Secret.\n    two: Secret.\n", "one", "two")


def test_entry_of_only_injected_names_goes():
    assert without("Do it.\n\nArgs:\n    item: What.\n    one, two: Secret.", "one", "two") == (
        "Do it.\n\nArgs:\n    item: What."
    )


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ("item, memory : object\n    What it is.", "item : object\n    What it is."),
        ("memory, item : object\n    What it is.", "item : object\n    What it is."),
        ("item, memory, limit : object\n    What it is.", "item, limit : object\n    What it is."),
    ],
)
def test_another_name_of_the_same_entry_keeps_it(entry, kept):
    head = "Do it.\n\nParameters\n----------\n"

    assert without(head + entry) == head + kept


@pytest.mark.parametrize(
    "doc",
    [
        "Look into memory.\n\nmemory: this is prose with a colon.",
        "Do it.\n\nArgs:\n    item: What to keep in memory.\n        memory: is full.\n    memory_limit: How much memory.",
        "Do it.\n\nReturns:\n    memory: What was kept.",
        "Do it.\n\nRaises:\n    memory: Never.",
        "Do it.\n\nReturns\n-------\nmemory : dict\n    What was kept.",
        "Do it.\n\nNote:\n    memory: is precious.",
        "Do it.\n\n:param memory_limit: How much memory.\n:returns memory: What was kept.",
        "Do it.\n\nArgs:\n    my memory: two words are no name.",
        "Do it.\n\nParameters\n\nmemory : there is no rule under the heading.",
        "memory",
        "",
    ],
)
def test_name_that_merely_occurs_stays(doc):
    assert without_parameters(doc, ("memory",)) == doc


@pytest.mark.parametrize("newline_at_the_end", [False, True])
def test_docstring_without_the_name_is_unchanged(newline_at_the_end):
    doc = "Do it.\n\n  Args:\n      item: What.  \n\n\n  Odd:   \n\t\n" + ("\n" if newline_at_the_end else "")

    assert without_parameters(doc, ("memory",)) is doc


def test_no_docstring_stays_none():
    assert without_parameters(None, ("memory",)) is None


def test_docstring_as_it_stands_in_the_source():
    def function(item, memory):
        """Do it.

        Args:
            item: What.
            memory: Secret.

        Returns:
            It.
        """

    assert inspect.cleandoc(without_parameters(function.__doc__, ("memory",))) == (
        "Do it.\n\nArgs:\n    item: What.\n\nReturns:\n    It."
    )


@pytest.mark.parametrize("level", ["    ", ""], ids=["as written", "as Python 3.13 compiles it"])
def test_docstring_that_begins_with_its_section(level):
    # The compiler takes away the indent that all lines but the first share: here that of the entries.
    doc = f"Args:\n{level}memory: Secret.\n{level}item: What.\n"

    kept = without_parameters(doc, ("memory",))

    assert "Secret" not in kept
    assert "item: What." in kept


# A docstring of entries: none may lose a line but the one that is taken out.

_NAME = st.sampled_from(["item", "limit", "memory_limit", "mem", "memories", "xmemory", "path"])
_WORDS = st.lists(st.sampled_from(["memory", "memory:", "the", "(dict)", "-", "item,", ":param", "é"]), min_size=1).map(
    " ".join
)
_MORE = st.lists(st.one_of(_WORDS, st.just("")), max_size=3)
_ENTRIES = st.lists(st.tuples(_NAME, _WORDS, _MORE), max_size=4)


def _google(entries):
    for name, words, more in entries:
        yield f"    {name}: {words}"
        yield from (f"        {line}" if line else "" for line in more)


def _numpy(entries):
    for name, words, more in entries:
        yield f"{name} : int"
        yield f"    {words}"
        yield from (f"    {line}" if line else "" for line in more)


def _sphinx(entries):
    for name, words, more in entries:
        yield f":param {name}: {words}"
        yield from (f"    {line}" if line else "" for line in more)


_STYLES = {
    "google": (["Args:"], _google, ["", "Returns:", "    memory: stays"]),
    "numpy": (["Parameters", "----------"], _numpy, ["", "Returns", "-------", "memory : dict", "    stays"]),
    "sphinx": ([], _sphinx, ["", ":returns: memory stays"]),
}


def _lines(lines):
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("style", _STYLES)
@given(before=_ENTRIES, secret=_MORE, after=_ENTRIES, indent=st.sampled_from(["", "    ", "\t"]))
def test_no_line_of_another_entry_is_ever_removed(style, before, secret, after, indent):
    heading, write, tail = _STYLES[style]
    others = [*write(before), *write(after)]
    whole = [*write(before), *write([("memory", "SECRET", [f"SECRET {line}" for line in secret])]), *write(after)]
    body = lambda lines: "\n".join(indent + line if line else "" for line in ["Do memory.", "", *heading, *lines, *tail])  # noqa: E731

    kept = without_parameters(body(whole), ("memory",))

    assert "SECRET" not in kept
    wanted = body(others) if others or not heading else body([]).replace("\n".join(indent + line for line in heading), "")
    assert _lines(kept.split("\n")) == _lines(wanted.split("\n"))


@given(st.text(alphabet=st.sampled_from("memoryArgs:\n -\t,(*Paramets"), max_size=200))
def test_nothing_breaks_it_and_nothing_is_added(doc):
    kept = without_parameters(doc, ("memory",))

    rest = iter(doc.split("\n"))
    assert "memory" in doc or kept == doc
    assert all(line in rest for line in kept.split("\n") if line.strip())
