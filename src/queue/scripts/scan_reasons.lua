-- Returns some entries that have a reason, without the reasons. Leaves out those that are too long: anybody may have
-- written them.
-- KEYS: the hash of reasons.
-- ARGV: the cursor, how many fields to look at, the most bytes of an entry.
-- Returns the next cursor, then the entries; the end if the key holds another type.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {'0'} end
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local entries, fields, most = {found[1]}, found[2], tonumber(ARGV[3])
for i = 1, #fields, 2 do
  if #fields[i] <= most then entries[#entries + 1] = fields[i] end
end
return entries
