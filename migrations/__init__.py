"""The schema, as numbered SQL files. Code does not belong here."""
