"""What texts have to match at the door, and the rules in words: a regular expression says little to who reads it."""

from __future__ import annotations

from registry import names

NAME = f'^{names.NAME.pattern}$'
ALIAS = f'^{names.ALIAS.pattern}$'
ID = f'^{names.ID.pattern}$'
ARTIFACT = f'{ID}|{ALIAS}'
SHA256 = '^[0-9a-f]{64}$'
DEVICE = r'^(cpu|gpu|cuda(:\d{1,3})?)$'

# what is said of a text that does not match
RULES = {
    NAME: f'is not a valid name: {names.NAME_RULE}',
    ALIAS: f'is not a valid alias: {names.ALIAS_RULE}',
    ID: f'is no id: {names.ID_RULE}',
    ARTIFACT: f'is neither the id of an artifact ({names.ID_RULE}) nor an alias, such as support@production',
    SHA256: 'is no sha256: that is 64 hexadecimal digits, in lower case',
    DEVICE: "is no device: give 'cpu', 'gpu' or a GPU by its number, such as 'cuda:1'",
}
