"""Addresses in messages: nothing of a user, a password or a query, however the URI is written or taken apart."""

import pytest

from arms_model.uris import hidden, shown_uri

PASSWORD = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql+psycopg2://ada:hunter2@db/arms", "postgresql+psycopg2://db/arms"),
        ("http://user:pa@hunter2@host", "http://host"),
        ("http://user:hunter2@Host:5000/x?token=hunter2#y", "http://Host:5000/x"),
        ("http://user:hunter2@[::1]:5000", "http://[::1]:5000"),
        ("http://user:hunter2@host:port", "http://host:port"),
        ("http://hunter2@host", "http://host"),
        ("postgresql+psycopg2://h/x?user=a&password=hunter2", "postgresql+psycopg2://h/x"),
        ("postgresql+psycopg2:///x?password=hunter2", "postgresql+psycopg2:///x"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("./mlruns", "./mlruns"),
        ("http://user:hunter2/ss@host", "http://(address not shown)"),
        ("http://user:pa?hunter2@host", "http://(address not shown)"),
        ("http://user:p@hunter2/w@host", "http://(address not shown)"),
        ("http://user:[hunter2@host", "http://(address not shown)"),
        ("user:hunter2@host", "(address not shown)"),
    ],
)
def test_address_is_shown_without_user_password_and_query(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown
    assert hidden(f"cannot reach {uri}.", uri) == f"cannot reach {shown}."


@pytest.mark.parametrize(
    ("uri", "text", "expected"),
    [
        ("http://user:pa@ss@127.0.0.1", 'host "ss@127.0.0.1" is unknown', 'host "127.0.0.1" is unknown'),
        ("http://user:pa@ss@127.0.0.1", "user:pa@ss@127.0.0.1", "127.0.0.1"),
        ("http://user:p@a@ss@host", "a@ss@host, then ss@host", "host, then host"),
        (
            "postgresql+psycopg2://ada:hunter2@db/arms",
            "postgresql+psycopg2://ada:hunter2@db/arms nor http://eve:pw@x/",
            "postgresql+psycopg2://db/arms nor http://x/",
        ),
        ("http://user:hunter2@host", "password 'hunter2' of user:hunter2", "password '***' of ***"),
        ("http://user:hunter%402@host", "password 'hunter@2', sent as hunter%402", "password '***', sent as ***"),
        ("postgresql+psycopg2://h/x?user=a&password=hunter2", "hunter2 is wrong for a", "*** is wrong for a"),
        ("http://user:hunter2/ss@host", "port 'hunter2/ss' of user:hunter2/ss", "port '***' of ***"),
        ("http://host", "neither http://eve:p@w@x/ nor http://host", "neither http://x/ nor http://host"),
        ("http://host:5000", "connection refused", "connection refused"),
    ],
)
def test_error_text_keeps_nothing_of_the_password(uri: str, text: str, expected: str) -> None:
    assert hidden(text, uri) == expected
