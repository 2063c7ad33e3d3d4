-- Removes all copies of an entry from a dead letter queue, and everything that Redis holds about it.
-- KEYS: the dead letter list, the hash of reasons; for an ingress list also the deaths, tries and lapses hashes.
-- ARGV: entry, the key of a document to delete as well, or ''.
-- Returns the number of copies, or that the key holds another type.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[1] .. ' holds a ' .. kind .. ', not a list' end
local dropped = redis.call('LREM', KEYS[1], 0, ARGV[1])
if dropped == 0 then return 0 end
for i = 2, #KEYS do redis.pcall('HDEL', KEYS[i], ARGV[1]) end
-- Whoever pushes the vCon again later wants all its links to run.
if #KEYS > 2 then redis.pcall('HDEL', 'conserver:progress', KEYS[1]:sub(#'DLQ:' + 1) .. '\n' .. ARGV[1]) end
if ARGV[2] ~= '' then redis.call('DEL', ARGV[2]) end
return dropped
