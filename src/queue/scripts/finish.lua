-- Announces a finished vCon to the egress lists and lets go of its claim.
-- KEYS: the claims hash, the deaths hash, then the egress lists.
-- ARGV: lane, record, uuid to announce, uuid claimed, context, the context's time to live.
-- Answers 1 when done, 0 when the claim is not ours any more, or the name of an egress key that is no list.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i = 3, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'list' and kind ~= 'none' then return KEYS[i] .. ' holds a ' .. kind end
end
for i = 3, #KEYS do
  if ARGV[5] ~= '' then
    local key = 'context:' .. KEYS[i] .. ':' .. ARGV[3]
    redis.pcall('RPUSH', key, ARGV[5])
    redis.call('EXPIRE', key, ARGV[6])
  end
  redis.call('RPUSH', KEYS[i], ARGV[3])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[4])
redis.call('HDEL', 'conserver:tries', ARGV[4])
return 1
