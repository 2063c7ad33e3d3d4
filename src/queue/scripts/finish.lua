-- Replaces a finished vCon's document where it changed, makes the announcements and lets go of its claim.
-- KEYS: the claims hash, the deaths hash, the vCon's key, the key of its new document, then the lists to push to.
-- ARGV: lane, record, uuid claimed, context, the context's time to live, '1' where there is a new document,
--       a time to live for the vCon's key or '', the one of a document whose key has expired in the meantime,
--       then the uuid to push for each of the lists.
-- Answers 1 when done, 0 when the claim is not ours any more, or the name of a key to push to that is no list.
-- The new document was written under a key of its own: a claim that is gone leaves the vCon as it is by now.

local changed = ARGV[6] == '1'
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  if changed then redis.call('DEL', KEYS[4]) end
  return 0
end
for i = 5, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'list' and kind ~= 'none' then
    if changed then redis.call('DEL', KEYS[4]) end
    return KEYS[i] .. ' holds a ' .. kind
  end
end
-- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
if changed then
  local left = redis.call('PTTL', KEYS[3])
  redis.call('RENAME', KEYS[4], KEYS[3])
  if left == -1 then
    redis.call('PERSIST', KEYS[3])
  else
    redis.call('PEXPIRE', KEYS[3], left > 0 and left or ARGV[8] * 1000)
  end
end
if ARGV[7] ~= '' then redis.call('EXPIRE', KEYS[3], ARGV[7]) end
for i = 5, #KEYS do
  local pushed = redis.pcall('RPUSH', KEYS[i], ARGV[i + 4])
  if type(pushed) == 'table' then
    -- Not half of it: it will be tried again.
    for j = 5, i - 1 do redis.call('RPOP', KEYS[j]) end
    return pushed
  end
end
for i = 5, #KEYS do
  if ARGV[4] ~= '' then
    local key = 'context:' .. KEYS[i] .. ':' .. ARGV[i + 4]
    redis.pcall('RPUSH', key, ARGV[4])
    redis.pcall('EXPIRE', key, ARGV[5])
  end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.pcall('HDEL', KEYS[2], ARGV[3])
redis.pcall('HDEL', 'conserver:tries', ARGV[3])
return 1
