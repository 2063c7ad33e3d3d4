
-- KEYS: the list of what was written while links wrote a vCon by themselves.
-- ARGV: which of the texts they began with, from which one on they may be written over.
-- Returns how many texts are kept, and what `written_over` does.

return {last_kept(KEYS[1]), written_over(KEYS[1], ARGV[1], tonumber(ARGV[2]))}
