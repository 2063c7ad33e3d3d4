-- Returns entries of a dead letter queue to show them. Anybody may have pushed them: cuts entries that are too long.
-- KEYS: the dead letter list.
-- ARGV: the indexes of the first and the last entry, as for LRANGE; how many bytes of an entry to return.

local entries, most = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2]), tonumber(ARGV[3])
for i, entry in ipairs(entries) do
  if #entry > most then entries[i] = entry:sub(1, most) end
end
return entries
