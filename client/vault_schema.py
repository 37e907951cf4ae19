"""The tables of a vault, and the steps from each version to the next.

    source       where text came from          consent      per source: what for
    document     one text, whose words are whose, and which slice it is in
    item, interaction                          things, and what the person thought of them, when
    attribute, preference, chat                who the person is, what they preferred, what was said with the model
    thumb                                      replies that they found good or bad
    vector, profile                            embeddings and summaries: derived, dropped with their documents
    pseudonym    which placeholder stands for which name
    adapter      own adapters and the release each was trained on
    tombstone    marks of what must not come back with the next import of its source
    forgotten    certificates                  journal      what changed what leaves, chained

Everything derived from a document points at it with ON DELETE CASCADE: what is forgotten takes its index along.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE source (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, place TEXT NOT NULL, owner TEXT NOT NULL, added REAL NOT NULL,
    UNIQUE (kind, place)
);
CREATE TABLE consent (
    source INTEGER NOT NULL REFERENCES source ON DELETE CASCADE, purpose TEXT NOT NULL, granted INTEGER NOT NULL,
    changed REAL NOT NULL, PRIMARY KEY (source, purpose)
) WITHOUT ROWID;
CREATE TABLE document (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL REFERENCES source ON DELETE CASCADE,
    key TEXT NOT NULL, type TEXT NOT NULL, title TEXT NOT NULL, written REAL, spans TEXT NOT NULL,
    own_words INTEGER NOT NULL, held_back INTEGER NOT NULL, sha256 BLOB NOT NULL, UNIQUE (source, key)
);
CREATE INDEX document_written ON document (written);
CREATE INDEX document_sha256 ON document (sha256);
CREATE TABLE item (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL REFERENCES source ON DELETE CASCADE,
    key TEXT NOT NULL, title TEXT NOT NULL, about TEXT NOT NULL, UNIQUE (source, key)
);
CREATE TABLE interaction (
    item INTEGER NOT NULL REFERENCES item ON DELETE CASCADE, time REAL NOT NULL, rating REAL NOT NULL,
    PRIMARY KEY (item, time)
) WITHOUT ROWID;
CREATE TABLE attribute (name TEXT PRIMARY KEY, value TEXT NOT NULL, changed REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE preference (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, prompt TEXT NOT NULL, chosen TEXT NOT NULL, rejected TEXT NOT NULL
);
CREATE TABLE chat (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, question TEXT NOT NULL, reply TEXT NOT NULL
);
CREATE TABLE chat_document (
    chat INTEGER NOT NULL REFERENCES chat ON DELETE CASCADE, document INTEGER NOT NULL, PRIMARY KEY (chat, document)
) WITHOUT ROWID;
CREATE TABLE vector (
    document INTEGER NOT NULL REFERENCES document ON DELETE CASCADE, passage INTEGER NOT NULL, encoder TEXT NOT NULL,
    value BLOB NOT NULL, PRIMARY KEY (document, passage, encoder)
) WITHOUT ROWID;
CREATE TABLE profile (
    document INTEGER NOT NULL REFERENCES document ON DELETE CASCADE, line TEXT NOT NULL, PRIMARY KEY (document, line)
) WITHOUT ROWID;
CREATE TABLE pseudonym (
    entity TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, original TEXT NOT NULL,
    PRIMARY KEY (entity, name)
) WITHOUT ROWID;
CREATE TABLE pseudonym_document (
    entity TEXT NOT NULL, name TEXT NOT NULL, document INTEGER NOT NULL REFERENCES document ON DELETE CASCADE,
    PRIMARY KEY (entity, name, document)
) WITHOUT ROWID;
CREATE INDEX pseudonym_by_document ON pseudonym_document (document);
CREATE TABLE adapter (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, release TEXT NOT NULL, made REAL NOT NULL, active INTEGER NOT NULL,
    facts TEXT NOT NULL, tensors BLOB NOT NULL
);
CREATE TABLE adapter_document (
    adapter INTEGER NOT NULL REFERENCES adapter ON DELETE CASCADE, document INTEGER NOT NULL,
    PRIMARY KEY (adapter, document)
) WITHOUT ROWID;
CREATE TABLE journal (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, line TEXT NOT NULL, head BLOB NOT NULL
);
CREATE TABLE tombstone (mark BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE forgotten (id INTEGER PRIMARY KEY, time REAL NOT NULL, certificate TEXT NOT NULL);
"""

# What was preferred after a prompt that held a document goes with that document.
PREFERENCES: Final = """
ALTER TABLE preference ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat';
CREATE TABLE preference_document (
    preference INTEGER NOT NULL REFERENCES preference ON DELETE CASCADE, document INTEGER NOT NULL,
    PRIMARY KEY (preference, document)
) WITHOUT ROWID;
CREATE INDEX preference_by_document ON preference_document (document);
CREATE TRIGGER preference_forgotten AFTER DELETE ON document BEGIN DELETE FROM preference WHERE id IN
    (SELECT preference FROM preference_document WHERE document = old.id); END;
"""

# A reply that was found good or bad, alone; it goes with the first document that stood in its prompt and is forgotten.
THUMBS: Final = """
CREATE TABLE thumb (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL, kind TEXT NOT NULL,
    up INTEGER NOT NULL, UNIQUE (prompt, kind, text)
);
CREATE TABLE thumb_document (
    thumb INTEGER NOT NULL REFERENCES thumb ON DELETE CASCADE, document INTEGER NOT NULL,
    PRIMARY KEY (thumb, document)
) WITHOUT ROWID;
CREATE INDEX thumb_by_document ON thumb_document (document);
CREATE TRIGGER thumb_forgotten AFTER DELETE ON document BEGIN DELETE FROM thumb WHERE id IN
    (SELECT thumb FROM thumb_document WHERE document = old.id); END;
"""

# Step i brings a vault from version i to i + 1; never changed once published, only added to.
MIGRATIONS: Final = (FIRST, PREFERENCES, THUMBS)
VERSION: Final = len(MIGRATIONS)
