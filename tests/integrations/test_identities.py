"""What the modules of the frameworks share."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest

from agent_gantry_state import Gantry, Identity
from agent_gantry_state.integrations.identities import entered, found

NAMES = {"session": "session_id", "user": "user_id", "tenant": "org"}


@pytest.mark.parametrize("kind", [dict, lambda **ids: SimpleNamespace(**ids)])
def test_ids_are_found_in_mappings_and_objects(kind):
    assert found(NAMES, kind(session_id="s1", org="acme", other="x")) == Identity("s1", keys={"tenant": "acme"})


def test_first_source_that_has_an_id_counts():
    assert found(
        NAMES, None, {"session_id": None}, {"session_id": "s1"}, {"session_id": "s2", "user_id": "ada"}
    ) == Identity("s1", "ada")


@pytest.mark.parametrize("sources", [(), (None,), ({},), (object(), {"session_id": None})])
def test_nothing_found_is_nobody(sources):
    assert found(NAMES, *sources) is None


class Special(uuid.UUID):
    pass


@pytest.mark.parametrize("id", [7, uuid.UUID(int=7), Special(int=7), "7"])
def test_numbers_and_uuids_are_ids(id):
    assert found(NAMES, {"session_id": id}) == Identity(str(id))


@pytest.mark.parametrize("id", [True, 7.0, b"x", ["x"], {}])
def test_other_types_are_refused(id):
    with pytest.raises(TypeError, match="identity: session must be a str"):
        found(NAMES, {"session_id": id})


def test_empty_id_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        found(NAMES, {"session_id": ""})


def test_identity_with_a_session_is_the_whole_of_it():
    gantry = Gantry(user="default")

    with gantry.session("around", user="bob", tenant="acme"), entered(gantry, Identity("s1")):
        assert gantry.identity() == Identity("s1")


def test_identity_without_a_session_replaces_what_it_names():
    gantry = Gantry(session="local", user="default")

    with entered(gantry, Identity(user="ada")):
        assert gantry.identity() == Identity("local", "ada")
    with gantry.session("around", user="bob", tenant="acme"), entered(gantry, Identity(user="ada")):
        assert gantry.identity() == Identity("around", "ada", keys={"tenant": "acme"})


def test_user_alone_makes_up_no_session():
    gantry = Gantry()

    with entered(gantry, Identity(user="ada")):
        assert gantry.identity() == Identity(user="ada")


def test_nobody_leaves_what_is_known():
    gantry = Gantry()

    with gantry.session("s1", user="ada"), entered(gantry, None):
        assert gantry.identity() == Identity("s1", "ada")
