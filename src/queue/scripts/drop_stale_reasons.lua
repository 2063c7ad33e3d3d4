-- Drops reasons whose entries are no longer in their dead letter queue. Young reasons stay: they show that an entry which
-- others have put back on its list failed just before.
-- KEYS: the dead letter list, the hash of reasons.
-- ARGV: the entries.
-- Returns how many were dropped.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'list' and kind ~= 'none' then return 0 end
local dropped = 0
for _, entry in ipairs(ARGV) do
  local reason = redis.call('HGET', KEYS[2], entry)
  -- Redis before 6.0.6 does not know LPOS: the error counts as found, so that nothing is dropped.
  if reason and seconds_since(reason) >= YOUNG and not redis.pcall('LPOS', KEYS[1], entry) then
    dropped = dropped + redis.call('HDEL', KEYS[2], entry)
  end
end
return dropped
