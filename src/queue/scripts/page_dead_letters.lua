-- Returns entries of a dead letter queue for somebody to look at. Anybody may have pushed them: what is too long to be
-- shown is cut.
-- KEYS: the dead letter list. ARGV: the first and the last entry, as LRANGE has them; the most bytes of an entry.

local entries, most = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2]), tonumber(ARGV[3])
for i, entry in ipairs(entries) do
  if #entry > most then entries[i] = entry:sub(1, most) end
end
return entries
