-- Returns some entries that have a reason, each with the beginning and the end of its reason: anybody may have written
-- them, of any length.
-- KEYS: the hash of reasons.
-- ARGV: the cursor, how many fields to look at, how many bytes of an entry to return, of the beginning of a reason, of
--       its end.
-- Returns the next cursor, then three values for each entry: the entry, the beginning of its reason, and its end if the
-- beginning is not all of it. The end if the key holds another type.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {'0'} end
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local fields, beginning, ending = found[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local reply = {found[1]}
for i = 1, #fields, 2 do
  local reason = fields[i + 1]
  reply[#reply + 1] = fields[i]:sub(1, tonumber(ARGV[3]))
  reply[#reply + 1] = reason:sub(1, beginning)
  reply[#reply + 1] = #reason > beginning and reason:sub(-ending) or ''
end
return reply
