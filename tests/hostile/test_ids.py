"""Whatever ids are made of, people who have different ones share nothing, on any store."""

from __future__ import annotations

import pytest
from hostile.ids import INJECTIONS, addresses, likes
from hostile.soaks import check_addresses, check_people
from hypothesis import given, settings

from agent_gantry_state import Gantry, Identity, Namespace

#: Texts of 100,000 characters are what it says is unlikely to be useful.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore:Generating overly large repr")]
QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(addresses())
def test_no_two_addresses_share_anything_on_any_store(all_places, parts):
    check_addresses(all_places, parts)


@QUICK
@given(likes())
def test_no_two_people_share_anything_on_any_store(all_places, names):
    check_people(all_places, names)


def test_no_id_is_a_command(all_places):
    check_people(all_places, INJECTIONS)
    check_addresses(all_places, [(text, text, text) for text in INJECTIONS])


# What an id says of itself.


class Anybody(str):
    """An id that is equal to every other one, is nothing, and is written as one person's."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return 7

    def __len__(self):
        return 0

    def __str__(self):
        return "admin"

    __repr__ = __str__

    def encode(self, *args):
        return b"admin"


class Liar:
    """What `isinstance` takes for a text."""

    @property
    def __class__(self):
        return str

    __hash__ = None


def test_people_whose_ids_say_that_they_are_the_same_share_nothing(all_places):
    for place in all_places:
        gantry = place.gantry
        for name in ("ada", "bob", "admin"):
            with gantry.memory("user", user=Anybody(name)) as memory:
                assert memory == {}
                memory["name"] = name
        for name in ("ada", "bob", "admin"):
            with place.reader.memory("user", user=name) as memory:
                assert memory == {"name": name}
        gantry.forget("user", user=Anybody("bob"))
        with place.reader.memory("user", user="ada") as memory:
            assert memory == {"name": "ada"}
        gantry.forget("user", user="ada")
        gantry.forget("user", user="admin")


@pytest.mark.parametrize("make", [Identity, lambda id: Identity("s", id), lambda id: Identity(keys={"team": id})])
def test_an_identity_keeps_of_an_id_its_text_alone(make):
    assert [type(id) for id in make(Anybody("ada")).keys.values()][-1] is str
    assert make(Anybody("ada")) != make(Anybody("bob"))
    assert type(make(Anybody("ada")).owner) is str


@pytest.mark.parametrize("part", range(3))
def test_a_namespace_keeps_of_its_parts_their_text_alone(part):
    parts = ["session", "s1", "app"]
    namespaces = []
    for text in ("ada", "bob"):
        parts[part] = Anybody(text)
        namespaces.append(Namespace(*parts))

    assert {type(each) for each in namespaces[0]} == {str}
    assert namespaces[0] != namespaces[1]
    assert namespaces[0].digest != namespaces[1].digest


def test_an_app_is_its_text_alone():
    with Gantry("memory://", app=Anybody("one")) as gantry:
        assert type(gantry._wiring.app) is str
        assert gantry._wiring.app == "one"


@pytest.mark.parametrize("refuse", [Identity, lambda id: Namespace("session", id), lambda id: Gantry(app=id)])
@pytest.mark.parametrize("id", [Liar(), 5, b"s1", ["s1"], object()], ids=["liar", "int", "bytes", "list", "object"])
def test_what_is_no_text_is_no_id(refuse, id):
    with pytest.raises(TypeError, match=r"must be a str, not \w+"):
        refuse(id)
