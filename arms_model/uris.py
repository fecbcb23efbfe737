"""Addresses of stores in what people read: without users, passwords and queries.

Passwords stand in URIs unescaped more often than not (`http://user:pa@ss@host`), so what comes before the last `@` is
taken for the user's, and an address that can be read in two ways is not shown at all.
"""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

_NOT_SHOWN = "(address not shown)"
_FILE = "sqlite:///"  # a path, in which an @ parts nothing
_SECRET_NAMES = re.compile(r"pass|pwd|secret|token|key|auth", re.IGNORECASE)


def shown_uri(uri: str) -> str:
    """A store's URI as far as it may be shown: scheme, host, port and path.

    >>> shown_uri("http://user:pa@ss@host:5000/x?token=1")
    'http://host:5000/x'
    """
    scheme, is_uri, _ = uri.partition("://")
    if not is_uri:
        return _NOT_SHOWN if "@" in uri else uri.split("?")[0]
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"{scheme}://{_NOT_SHOWN}"
    after = parts.path + parts.query + parts.fragment
    if "@" in after and not uri.startswith(_FILE):  # of a password with / ? or #, perhaps
        return f"{scheme}://{_NOT_SHOWN}"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def hidden(text: str, uri: str) -> str:
    """`text`, e.g. of an error, without what `uri` gives away, in whichever way its author took the URI apart.

    Other URIs lose their users as well.

    >>> hidden("no host ss@host", "http://user:pa@ss@host")
    'no host host'
    """
    text = text.replace(uri, shown_uri(uri))
    query = uri.partition("?")[2]
    words = {value for name, value in parse_qsl(query) if _SECRET_NAMES.search(name)}
    before_host, _, after = uri.partition("://")[2].rpartition("@")
    if before_host and not uri.startswith(_FILE):
        parts = before_host.split("@")
        tails = {"@".join(parts[place:]) for place in range(len(parts))}
        for tail in sorted(tails, key=len, reverse=True):
            text = text.replace(f"{tail}@", "")
        words |= {before_host, before_host.partition(":")[2]}
        host = re.escape(re.split(r"[/?#:]", after)[0])
        text = re.sub(rf"[^\s/@\"'()]*@(?={host})", "", text) if host else text
    if query:
        text = text.replace(f"?{query}", "")
    for word in sorted(words | {unquote(word) for word in words}, key=len, reverse=True):
        if word:
            text = text.replace(word, "***")
    return re.sub(r"//[^/\s]*@", "//", text)
