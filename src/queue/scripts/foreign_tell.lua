-- A document has been written in this transaction, past the scripts.
-- KEYS: the vCon's key.

tell_foreign_writers(KEYS[1])
return 1
