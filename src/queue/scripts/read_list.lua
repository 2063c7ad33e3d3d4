-- Returns entries of a list, each up to a length: anybody may have pushed them.
-- KEYS: the list.
-- ARGV: the indexes of the first and the last entry, as for LRANGE; how many bytes of an entry to return.
-- Returns nothing if the key holds another type.

if redis.call('TYPE', KEYS[1]).ok ~= 'list' then return {} end
local entries, most = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2]), tonumber(ARGV[3])
for i, entry in ipairs(entries) do
  if #entry > most then entries[i] = entry:sub(1, most) end
end
return entries
