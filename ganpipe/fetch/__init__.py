"""Stage fetch: a source's files → one archive and a manifest."""
