-- Moves a claimed entry to its dead letter queue.
-- KEYS: the claims hash, the deaths hash, the dead letter list, the hash of reasons.
-- ARGV: lane, the claim's token, entry, reason (a JSON object), the document's key or '', its time to live (0: unchanged),
--       the field of the vCon's progress, the key of the document that the progress belongs to, the progress or '', the
--       text that must stand there, the progress that the claim got, the time to live of progress, '1' to move the entry
--       even if it was a dead letter just before.
-- Returns 1 if done, 0 if the lane no longer holds the claim. If the lane still holds it, returns 'changed' if another
-- document stands there, or 'again' and a number if the entry was a dead letter just before, that many times in a row:
-- somebody puts back at once whatever comes here, and would never see the queue empty.

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not is_held(record, ARGV[2]) then return 0 end
if is_outdated(ARGV[8], ARGV[9], ARGV[10]) then return 'changed' end
local reason, before, again = ARGV[4], redis.pcall('HGET', KEYS[4], ARGV[3]), 0
if type(before) == 'string' and seconds_since(before) < YOUNG then
  again = (tonumber(before:sub(-80):match('"again":(%d+),"at":')) or 0) + 1
  if ARGV[13] ~= '1' then return 'again ' .. again end
  reason = reason:sub(1, -2) .. ',"again":' .. again .. '}'
end
-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
local kind = redis.call('TYPE', KEYS[3]).ok
if kind == 'list' or kind == 'none' then
  redis.call('RPUSH', KEYS[3], ARGV[3])
else
  redis.call('RPUSH', 'conserver:unreadable', record)
end
-- No failure from here on may leave the claim in place: the entry would be pushed again.
redis.pcall('HSET', KEYS[4], ARGV[3], with_time(reason))
redis.pcall('SADD', 'conserver:letters', KEYS[3])
if ARGV[5] ~= '' then
  if ARGV[6] ~= '0' then redis.pcall('EXPIRE', ARGV[5], ARGV[6]) end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.pcall('HDEL', KEYS[2], ARGV[3])
redis.pcall('HDEL', 'conserver:lapses', ARGV[3])
redis.pcall('HDEL', 'conserver:tries', ARGV[3])
keep_progress(ARGV[7], ARGV[8], ARGV[9], ARGV[11], ARGV[12])
return 1
