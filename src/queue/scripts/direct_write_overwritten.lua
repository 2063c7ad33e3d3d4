
-- Returns the number of recorded texts, and what `written_over` returns.
-- KEYS: the list of texts that were recorded during direct writes.
-- ARGV: the index of the text that the links began with, the index of the first text that they may have overwritten.

return {last_kept(KEYS[1]), written_over(KEYS[1], ARGV[1], tonumber(ARGV[2]))}
