-- Takes an entry out of a dead letter queue, every time it stands there, with all that is kept about it.
-- KEYS: the dead letter list, the hash of reasons; of an ingress list also the deaths, tries and lapses hashes.
-- ARGV: entry, the key of a document to delete as well, or ''.
-- Answers how often it stood there, or that the key is no list.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[1] .. ' holds a ' .. kind .. ', not a list' end
local dropped = redis.call('LREM', KEYS[1], 0, ARGV[1])
if dropped == 0 then return 0 end
for i = 2, #KEYS do redis.pcall('HDEL', KEYS[i], ARGV[1]) end
-- Whoever pushes the vCon again later wants all of it done.
if #KEYS > 2 then redis.pcall('HDEL', 'conserver:progress', KEYS[1]:sub(#'DLQ:' + 1) .. '\n' .. ARGV[1]) end
if ARGV[2] ~= '' then redis.call('DEL', ARGV[2]) end
return dropped
