-- A link has written a vCon by itself.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, the key of the worker's claims, the lane, how many texts were in the list when the link began.
-- Returns what has been kept since then. If there is anything, the link counts as at work until `foreign_forget`: this
-- answer may be lost, and the worker may die before it has merged the texts.

local kept = redis.call('LRANGE', KEYS[2], ARGV[4], -1)
if #kept == 0 then end_work(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]) end
return kept
