"""The command line: what it prints where, how it ends, and what it never says."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys

import pytest
import servers
from support import Coroutines
from typer.testing import CliRunner

from agent_gantry_state import Gantry, Namespace, __version__
from agent_gantry_state.__main__ import main
from agent_gantry_state.cli import app

pytestmark = pytest.mark.once

S1 = Namespace("session", "s1")
SECRET = "hunter2"


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def filled(url):
    with Gantry(url) as gantry:
        with gantry.memory("session", session="s1", user="ada") as memory:
            memory["n"] = 1
            memory["pair"] = (1, "x")
            memory.set("soon", "é", ttl=600)
        with gantry.memory("session", session="s2") as memory:
            memory["n"] = 2
        with gantry.memory("user", user="ada") as memory:
            memory["lang"] = "en"
    with Gantry(url, app="other") as gantry, gantry.memory("user", user="ada") as memory:
        memory["lang"] = "fr"
    return url


def run(*arguments, code=0, url=None, **options):
    """Run a command in this process; what it said on stdout and on stderr."""
    env = {"AGENT_GANTRY_STATE_URL": url} if url else {}
    done = CliRunner().invoke(app, [str(each) for each in arguments], env=env, **options)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stderr if done.exit_code != code else "") == (code, "")
    return done.stdout, done.stderr


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def admin(url, ask):
    with Gantry(url) as gantry:
        return ask(gantry.admin.all_apps)


def values(it):
    """What is in a store, but for times."""
    return {
        each.namespace: (each.owner, [(key.key, key.packed) for key in it.show(each.namespace).keys]) for each in it.list()
    }


# Looking.


def test_list_prints_a_line_for_each_memory_of_the_app(filled):
    out, err = run("list", url=filled)
    assert sorted(out.splitlines()) == [
        "default\tsession\ts1\tada",
        'default\tsession\ts2\t""',
        "default\tuser\tada\t-",
    ]
    assert err == ""


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--all-apps",), 4),
        (("--app", "other"), 1),
        (("--scope", "session"), 2),
        (("--owner", ""), 1),
        (("--user", "ada"), 2),
        (("--user", "ada", "--all-apps"), 3),
        (("--app", "none"), 0),
    ],
)
def test_list_prints_what_is_asked_for(filled, options, count):
    out, _ = run("list", "--json", *options, url=filled)
    assert len(objects(out)) == count
    assert all(each.keys() == {"app", "scope", "id", "owner"} for each in objects(out))


def test_show_prints_keys_in_order(filled):
    out, err = run("show", "--id", "s1", url=filled)

    assert [line.split("\t")[:2] for line in out.splitlines()] == [
        ["n", "1"],
        ["pair", '{"$tuple":[1,"x"]}'],
        ["soon", '"\\u00e9"'],
    ]
    assert err == "3 keys, 19 bytes, owner ada\n"
    (shown,) = objects(run("show", "--id", "s1", "--json", url=filled)[0])
    assert (shown["owner"], [each["key"] for each in shown["keys"]]) == ("ada", ["n", "pair", "soon"])


def test_get_prints_the_value_as_json(filled):
    assert run("get", "pair", "--id", "s1", url=filled) == ('{"$tuple":[1,"x"]}\n', "")
    (found,) = objects(run("get", "soon", "--id", "s1", "--json", url=filled)[0])
    assert found["value"] == "é"
    assert 500 < found["ttl"] <= 600
    assert bytes.fromhex(found["version"])


def test_global_needs_no_id_and_other_scopes_do(filled):
    run("set", "a", "1", "--scope", "global", url=filled)
    assert run("get", "a", "--scope", "global", url=filled)[0] == "1\n"
    assert "--id is needed" in run("get", "a", "--scope", "user", code=2, url=filled)[1]
    assert "--id is needed" in run("get", "a", "--id", "", code=2, url=filled)[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "--id", "s9"),
        ("get", "n", "--id", "s9"),
        ("get", "m", "--id", "s1"),
        ("get", "n", "--id", "s1", "--app", "other"),
        ("delete", "m", "--id", "s1"),
        ("delete", "--all", "--id", "s9"),
    ],
)
def test_what_is_not_there_ends_with_3(filled, arguments):
    out, err = run(*arguments, code=3, url=filled)
    assert out == ""
    assert err.startswith("error: ")


def test_ids_that_could_do_harm_to_a_terminal_are_shown_as_json(url):
    admin(url, lambda it: it.set(Namespace("user", "\x1b[31mred\t\n", "default"), "\x1b]0;x\x07", "\x1b[2J"))

    listed, _ = run("list", url=url)
    shown, _ = run("show", "--scope", "user", "--id", "\x1b[31mred\t\n", url=url)

    assert listed == 'default\tuser\t"\\u001b[31mred\\t\\n"\t-\n'
    assert shown.split("\t")[:2] == ['"\\u001b]0;x\\u0007"', '"\\u001b[2J"']


def test_markup_in_an_id_is_no_markup(url, monkeypatch):
    admin(url, lambda it: it.set(Namespace("user", "[red]x[/red]", "default"), "a", 1))
    monkeypatch.setattr("agent_gantry_state.cli.speech.sys.stdout.isatty", lambda: True, raising=False)
    assert "[red]x[/red]" in run("list", url=url)[0]


# Changing.


def test_set_makes_a_key_and_prints_its_version(url):
    out, err = run("set", "a", '{"b":{"$set":[1]}}', "--id", "s1", url=url)
    assert err == ""
    assert admin(url, lambda it: it.get(Namespace("session", "s1", "default"), "a").version) == out.strip()
    assert json.loads(run("set", "a", "1", "--id", "s1", "--json", url=url)[0]).keys() == {"version"}


def test_set_compares(filled):
    (found,) = objects(run("get", "n", "--id", "s1", "--json", url=filled)[0])

    new = run("set", "n", "5", "--id", "s1", "--if-version", found["version"], url=filled)[0].strip()
    assert "was changed since" in run("set", "n", "6", "--id", "s1", "--if-version", found["version"], code=4, url=filled)[1]
    assert "is there already" in run("set", "n", "6", "--id", "s1", "--if-absent", code=4, url=filled)[1]
    assert "was changed since" in run("delete", "n", "--id", "s1", "--if-version", found["version"], code=4, url=filled)[1]

    assert run("get", "n", "--id", "s1", url=filled)[0] == "5\n"
    run("delete", "n", "--id", "s1", "--if-version", new, url=filled)
    run("set", "n", "7", "--id", "s1", "--if-absent", url=filled)


def test_set_sets_and_takes_away_a_time_to_live(filled):
    def ttl():
        return objects(run("get", "n", "--id", "s1", "--json", url=filled)[0])[0]["ttl"]

    run("set", "n", "1", "--id", "s1", "--ttl", "60", url=filled)
    assert 50 < ttl() <= 60
    run("set", "n", "2", "--id", "s1", url=filled)
    assert 40 < ttl() <= 60
    run("set", "n", "3", "--id", "s1", "--no-ttl", url=filled)
    assert ttl() is None


def test_set_takes_a_text_as_it_is_and_a_value_from_stdin(url):
    run("set", "a", "{not json", "--text", "--id", "s1", url=url)
    assert run("get", "a", "--id", "s1", url=url)[0] == '"{not json"\n'
    run("set", "a", "-", "--id", "s1", url=url, input="[1,\n2]\n")
    assert run("get", "a", "--id", "s1", url=url)[0] == "[1,2]\n"


def test_value_from_stdin_is_utf8(url):
    run("set", "a", "-", "--text", "--id", "s1", url=url, input="é".encode())
    assert run("get", "a", "--id", "s1", url=url)[0] == '"\\u00e9"\n'
    assert "it is not UTF-8" in run("set", "a", "-", "--text", "--id", "s1", code=2, url=url, input=b"\xff")[1]


def test_set_knows_no_limit_that_it_was_not_told(url):
    run("set", "a", "-", "--id", "s1", url=url, input=json.dumps("x" * 1_000_000))
    assert admin(url, lambda it: it.get(Namespace("session", "s1", "default"), "a").size) > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("set", "a", "hunter2", "--id", "s1"), "A text is written in quotes"),
        (("set", "a", '{"$hunter2', "--id", "s1"), "no JSON"),
        (("set", "a", '{"$pickle":"x"}', "--id", "s1"), "$pickle is none of"),
        (("set", "a", "1", "--id", "s1", "--ttl", "0"), "--ttl must be"),
        (("set", "a", "1", "--id", "s1", "--ttl", "nan"), "--ttl must be"),
        (("set", "a", "1", "--id", "s1", "--ttl", "1", "--no-ttl"), "exclude each other"),
        (("set", "a", "1", "--id", "s1", "--if-version", "00", "--if-absent"), "exclude each other"),
        (("delete", "--id", "s1"), "name a KEY"),
        (("delete", "a", "--all", "--id", "s1"), "name a KEY"),
        (("delete", "--all", "--if-version", "00", "--id", "s1"), "exclude each other"),
        (("erase", "--user", ""), "--user must not be empty"),
        (("erase",), "--user"),
        (("list", "--user", ""), "--user must not be empty"),
        (("export", "--user", "ada", "--owner", "ada"), "exclude each other"),
        (("list", "--colour"), "--colour"),
        (("list", "--store", "memory://"), "cannot be looked into from here"),
        (("list", "--store", "nonsense://x"), "no store is known for"),
        (("list", "--store", "state.db"), "a store is named by a URL"),
    ],
)
def test_wrong_use_ends_with_2_and_changes_nothing(filled, arguments, problem):
    before = admin(filled, lambda it: sorted(it.export()))

    out, err = run(*arguments, code=2, url=filled)

    assert out == ""
    assert problem in err
    assert SECRET not in err
    assert admin(filled, lambda it: sorted(it.export())) == before


def test_delete_takes_a_key_or_all(filled):
    run("delete", "n", "--id", "s1", url=filled)
    assert [each["key"] for each in objects(run("show", "--id", "s1", "--json", url=filled)[0])[0]["keys"]] == [
        "pair",
        "soon",
    ]
    run("delete", "--all", "--id", "s1", url=filled)
    run("show", "--id", "s1", code=3, url=filled)


def test_erase_prints_a_receipt_and_dry_run_what_it_would_be(filled):
    dry = objects(run("erase", "--user", "ada", "--dry-run", "--json", url=filled)[0])[0]
    assert len(objects(run("list", "--all-apps", "--json", url=filled)[0])) == 4
    out, err = run("erase", "--user", "ada", url=filled)

    assert sorted(out.splitlines()) == ["default\tsession\ts1\tada\t3 keys", "default\tuser\tada\t-\t1 key"]
    assert err == "erased: 2 memories\n"
    assert (dry["user"], dry["dry_run"], dry["complete"]) == ("ada", True, False)
    assert sorted((each["scope"], each["id"], each["keys"]) for each in dry["erased"]) == [
        ("session", "s1", 3),
        ("user", "ada", 1),
    ]
    (rest,) = objects(run("erase", "--user", "ada", "--all-apps", "--json", url=filled)[0])
    assert ([each["app"] for each in rest["erased"]], rest["complete"], rest["at"][-6:]) == (["other"], True, "+00:00")


# Moving.


def test_export_goes_through_a_file_into_another_store(filled, tmp_path):
    out, err = run("export", "--all-apps", url=filled)
    assert err == "4 memories exported\n"
    assert objects(out)[-1] == {"end": 4}

    run("export", "--all-apps", "-o", tmp_path / "all.ndjson", url=filled)
    assert (tmp_path / "all.ndjson").read_text() == out
    assert stat.S_IMODE((tmp_path / "all.ndjson").stat().st_mode) == 0o600
    (counts,) = objects(run("import", tmp_path / "all.ndjson", "--json", url=f"file:///{tmp_path}/dir")[0])

    assert counts == {"written": 4, "unchanged": 0, "skipped": 0, "expired": 0, "corrupt": 0}
    assert admin(f"file:///{tmp_path}/dir", values) == admin(filled, values)


def test_import_reads_stdin(filled, tmp_path):
    exported, _ = run("export", url=filled)
    out, err = run("import", "-", url=f"sqlite:///{tmp_path}/new.db", input=exported)
    assert err == "imported: 3 memories\n"
    assert out.splitlines()[0] == "written\t3"


def test_import_of_a_file_that_is_wrong_somewhere_writes_nothing_at_all(filled, tmp_path):
    lines = run("export", "--all-apps", url=filled)[0].splitlines()
    lines[3] = lines[3].replace('"value":', '"value":{"$set":[1,1]},"v":', 1)
    (tmp_path / "bad.ndjson").write_text("\n".join(lines))

    _, err = run("import", tmp_path / "bad.ndjson", code=1, url=f"sqlite:///{tmp_path}/new.db")

    assert err.startswith("error: line 4")
    assert admin(f"sqlite:///{tmp_path}/new.db", lambda it: list(it.list())) == []


def test_import_that_fails_on_the_way_says_how_far_it_came(filled, tmp_path):
    lines = run("export", "--scope", "session", url=filled)[0].splitlines()
    _, err = run("import", "-", code=1, url=f"sqlite:///{tmp_path}/new.db", input="\n".join([*lines[:2], "{"]))
    assert err.splitlines()[0] == "imported from the lines before: 1 memory"
    assert err.splitlines()[1].startswith("error: line 3: it is no JSON")


def test_import_of_what_is_there_as_another_one_ends_with_4(filled, tmp_path):
    run("export", "-o", tmp_path / "all.ndjson", url=filled)
    run("set", "n", "9", "--id", "s1", url=filled)

    assert "another one is there already" in run("import", tmp_path / "all.ndjson", code=4, url=filled)[1]
    skipped = objects(run("import", tmp_path / "all.ndjson", "--existing", "skip", "--json", url=filled)[0])
    assert (skipped[0]["skipped"], skipped[0]["unchanged"]) == (1, 2)
    dry = run("import", tmp_path / "all.ndjson", "--existing", "replace", "--dry-run", url=filled)[1]
    assert dry == "would be imported: 1 memory\n"
    assert run("get", "n", "--id", "s1", url=filled)[0] == "9\n"
    run("import", tmp_path / "all.ndjson", "--existing", "replace", url=filled)
    assert run("get", "n", "--id", "s1", url=filled)[0] == "1\n"


def test_file_that_is_not_there_or_may_not_be_written_ends_with_1(filled, tmp_path):
    assert "No such file" in run("import", tmp_path / "none", code=1, url=filled)[1]
    assert "No such file" in run("export", "-o", tmp_path / "none" / "all", code=1, url=filled)[1]


def test_what_a_killed_export_has_left_behind_is_in_nobodys_way(filled, tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    (place / "all.part").write_text("half")
    run("export", "-o", place / "all", url=filled)
    assert (place / "all.part").read_text() == "half"
    assert sorted(each.name for each in place.iterdir()) == ["all", "all.part"]


@pytest.mark.parametrize("arguments", [("import",), ("export", "-o")])
def test_url_in_the_place_of_a_file_is_not_shown(filled, arguments):
    err = run(*arguments, f"redis://:{SECRET}@127.0.0.1/0?password={SECRET}", code=2, url=filled)[1]
    assert "a file is needed" in err
    assert SECRET not in err


def test_copy_carries_all_apps_and_can_be_made_again(filled, tmp_path):
    target = f"file:///{tmp_path}/copy"
    _, err = run("copy", filled, target)
    assert err == "copied: 4 memories\n"
    (again,) = objects(run("copy", filled, target, "--json")[0])
    assert (again["written"], again["unchanged"]) == (0, 4)
    assert admin(target, values) == admin(filled, values)


def test_copy_of_an_app_or_a_scope(filled, tmp_path):
    target = f"file:///{tmp_path}/copy"
    run("copy", filled, target, "--app", "other")
    assert [each.namespace.app for each in admin(target, lambda it: list(it.list()))] == ["other"]
    run("copy", filled, target, "--scope", "session", "--owner", "ada")
    assert len(admin(target, lambda it: list(it.list()))) == 2


def test_copy_over_another_memory_ends_with_4(filled, tmp_path):
    target = f"file:///{tmp_path}/copy"
    run("set", "n", "9", "--id", "s1", "--store", target)
    assert "another one is there already" in run("copy", filled, target, code=4)[1]
    run("copy", filled, target, "--existing", "replace")
    assert run("get", "n", "--id", "s1", "--store", target)[0] == "1\n"


def test_copy_from_and_to_servers(filled, tmp_path):
    redis = f"{servers.redis_8().url}?prefix=cli-{os.urandom(4).hex()}:"
    postgresql = f"{servers.postgresql().url}?schema=cli_{os.urandom(4).hex()}"
    back = f"sqlite:///{tmp_path}/back.db"

    run("copy", filled, redis)
    run("copy", redis, postgresql)
    run("copy", postgresql, back)

    assert admin(back, values) == admin(filled, values)
    assert run("doctor", "--store", postgresql)[0].splitlines()[2] == "healthy\tyes"


def test_store_of_coroutines_that_somebody_registered_works_and_is_closed(monkeypatch):
    store = Coroutines()
    monkeypatch.setattr("agent_gantry_state.stores.urls._scheme", lambda scheme: lambda url: store)
    run("set", "a", "1", "--id", "s1", "--store", "theirs://")
    assert store.inner._closed


def damage(url, key):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE entry SET record = CAST(record || x'00' AS BLOB) WHERE key = ?", (key,))
    connection.close()


def test_what_cannot_be_read_is_left_out_told_and_ends_with_1(filled, tmp_path):
    damage(filled, b"pair")

    out, err = run("export", code=1, url=filled)
    assert objects(out)[-1] == {"end": 2}
    assert "error: default session s1: key 'pair' in the SQLite database cannot be read" in err
    assert err.splitlines()[-1] == "error: left out, for it cannot be read: 1 memory"

    (counts,) = objects(run("copy", filled, f"file:///{tmp_path}/copy", "--json", code=1)[0])
    assert (counts["written"], counts["corrupt"]) == (3, 1)
    # What is beside it can be changed.
    run("set", "n", "5", "--id", "s1", url=filled)
    assert run("get", "n", "--id", "s1", url=filled)[0] == "5\n"
    assert "'pair'" in run("show", "--id", "s1", code=1, url=filled)[1]


# Checking.


def test_doctor_tells_that_all_is_well(filled):
    out, err = run("doctor", url=filled)
    told = dict(line.split("\t") for line in out.splitlines())
    assert (told["healthy"], told["round trip"], told["memories"], told["keys"], told["corrupt"]) == (
        "yes",
        "yes",
        "4",
        "6",
        "0",
    )
    assert err == ""


def test_doctor_tells_what_is_damaged_and_ends_with_1(filled):
    damage(filled, b"pair")
    (told,) = objects(run("doctor", "--json", code=1, url=filled)[0])
    assert told["problems"] == ["1 of what is stored cannot be read"]
    assert [(each["id"], each["key"]) for each in told["corrupt"]] == [("s1", "pair")]
    assert "damaged: default session s1, key pair" in run("doctor", code=1, url=filled)[1]


def test_doctor_writes_nothing_if_told(filled):
    (told,) = objects(run("doctor", "--no-write", "--no-scan", "--json", url=filled)[0])
    assert (told["round_trip"], told["memories"], told["healthy"]) == (None, None, True)


# Stores.


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_store_that_is_not_there_is_not_made_by_looking(tmp_path, scheme):
    url = f"{scheme}:///{tmp_path}/mistyped"
    for arguments in (
        ("list",),
        ("show", "--id", "s1"),
        ("delete", "a", "--id", "s1"),
        ("erase", "--user", "ada"),
        ("export",),
        ("doctor",),
        ("copy", url, f"file:///{tmp_path}/copy"),
    ):
        assert "there is nothing at" in run(*arguments, code=1, url=url)[1]
    assert list(tmp_path.iterdir()) == []


def test_store_that_cannot_list_says_so(tmp_path):
    url = servers.memcached().url
    for command in (("list",), ("export",), ("erase", "--user", "ada"), ("copy", url, f"file:///{tmp_path}/d")):
        assert "memcached cannot tell what it holds" in run(*command, code=1, url=url)[1]
    assert run("doctor", url=url)[0].splitlines()[2] == "healthy\tyes"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:{{port}}",
        f"postgresql://ada:{SECRET}@127.0.0.1:{{port}}/x",
        f"redis://:{SECRET}@127.0.0.1:none",
        f"redis://:{SECRET}/x@127.0.0.1",
        f"redis://127.0.0.1?{SECRET}=1@",
        f"nothing://:{SECRET}@127.0.0.1",
    ],
)
def test_password_of_a_url_is_never_printed(url, capfd):
    url = url.format(port=servers.free_port())
    for arguments in (
        ["list", "--store", url],
        ["doctor", "--store", url],
        ["copy", url, url],
        ["copy", url, "sqlite:///:memory:", url],
        ["list", "--store", url, "--json", url],
        [url],
        ["list", url],
        ["list", f"--{url}"],
        ["list", "--existing", url],
        ["copy", "--existing", url, url, url],
        ["schema", url],
    ):
        assert main(arguments) in (1, 2)
    said = capfd.readouterr()
    assert said.err
    assert SECRET not in said.out + said.err


def test_password_from_the_environment_works(monkeypatch, capfd):
    with servers.started("redis_8", password=True) as server:
        monkeypatch.setenv("AGENT_GANTRY_STATE_URL", server.url)
        monkeypatch.setenv("AGENT_GANTRY_STATE_FROM_URL", server.url)
        monkeypatch.setenv("AGENT_GANTRY_STATE_TO_URL", server.url)
        assert servers.PASSWORD in server.url
        for arguments in (
            ["set", "a", "1", "--id", "s1"],
            ["get", "a", "--id", "s1"],
            ["get", "b", "--id", "s1"],
            ["copy"],
            ["doctor"],
            ["list", "--help"],
            ["copy", "--help"],
        ):
            main(arguments)
    said = capfd.readouterr()
    assert "1\n" in said.out
    assert servers.PASSWORD not in said.out + said.err


# The process itself.


def process(*arguments, **options):
    command = [sys.executable, "-m", "agent_gantry_state", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def test_exit_codes_and_streams_of_the_process(filled):
    env = {**os.environ, "AGENT_GANTRY_STATE_URL": filled}
    for arguments, code in (
        (("get", "n", "--id", "s1"), 0),
        (("get",), 2),
        (("set", "n", "2", "--id", "s1", "--if-absent"), 4),
    ):
        done = process(*arguments, env=env)
        assert (done.returncode, done.stdout) == (code, b"1\n" if code == 0 else b"")
        assert (done.stderr == b"") == (code == 0)
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_are_closed_or_full_break_nothing(filled, closed, unbuffered):
    env = {**os.environ, "AGENT_GANTRY_STATE_URL": filled, "PYTHONUNBUFFERED": unbuffered}
    for arguments in ("list", "set new - --id s9", "erase --user ada"):
        command = f"exec {sys.executable} -m agent_gantry_state {arguments} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, env=env, stdin=subprocess.DEVNULL, timeout=120)
        assert b"Traceback" not in done.stderr
        assert b"None" not in done.stderr
        assert done.returncode == (2 if "-" in arguments.split() else 1 if "full" in closed else 0)
    with Gantry(filled) as gantry:
        assert [each.namespace.id for each in gantry.admin.list()] == ["s2"]


def test_whoever_reads_may_stop_early(filled, tmp_path):
    with Gantry(filled) as gantry:
        for n in range(200):
            gantry.admin.set(Namespace("session", f"more {n}"), "text", "x" * 10_000)
    command = f"{sys.executable} -m agent_gantry_state export --store '{filled}' | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120)
    assert done.stdout == b'{"agent_gantry_state":"export","version":1}\n'
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_completion_knows_the_commands():
    env = {
        **os.environ,
        "_AGENT_GANTRY_STATE_COMPLETE": "complete_bash",
        "COMP_WORDS": "agent-gantry-state e",
        "COMP_CWORD": "1",
    }
    done = process(env=env)
    assert done.stdout.split() == [b"erase", b"export"]


def test_progress_is_shown_on_a_terminal_and_on_stderr_only(filled, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agent_gantry_state", "copy", filled, f"file:///{tmp_path}/copy", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as running:
        os.close(theirs)
        out = running.stdout.read()
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:
            pass  # the end, as Linux tells it
    os.close(ours)
    assert objects(out.decode())[0]["written"] == 4
    assert b"copying" in seen
    assert b"4/4" in seen


def test_version_and_help():
    assert run("--version")[0] == f"agent-gantry-state {__version__}\n"
    out, _ = run("--help")
    commands = ("list", "show", "get", "set", "delete", "erase", "export", "import", "copy", "doctor", "schema", "demo")
    assert all(f" {command} " in out for command in commands)
    assert "usage" in run("list", "--help")[0].lower()


@pytest.fixture
def without(request, monkeypatch):
    monkeypatch.setitem(sys.modules, request.param, None)
    for name in [name for name in sys.modules if name.startswith("agent_gantry_state.cli")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("without", ["typer", "rich"], indirect=True)
@pytest.mark.parametrize("command", ["list", "show", "get", "set", "delete", "erase", "export", "import", "copy", "doctor"])
def test_commands_without_the_extra_say_which_it_is(without, command, capsys):
    assert main([command]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip install 'agent-gantry-state[cli]'" in said.err


@pytest.mark.parametrize("without", ["typer"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["schema", "postgresql"], 0, "CREATE SCHEMA"),
        (["--version"], 0, __version__),
        (["--help"], 0, "agent-gantry-state[cli]"),
        (["schema", "redis"], 2, "postgresql"),
        (["nothing"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)
def test_schema_and_help_work_without_the_extra(without, arguments, code, text, capsys):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert text in said.out + said.err


def test_demo_works_without_the_extra():
    code = "import sys; sys.modules['typer'] = None\nfrom agent_gantry_state.__main__ import main\nsys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "All of it held." in done.stdout) == (0, True)
