-- Puts a claimed entry back at the head of its list, with its context.
-- KEYS: the claims hash, the ingress list.
-- ARGV: lane, record, entry, context, the context's time to live.
-- Answers 1 when done, 0 when the claim is not ours any more.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then
  local key = 'context:' .. KEYS[2] .. ':' .. ARGV[3]
  redis.pcall('LPUSH', key, ARGV[4])
  redis.call('EXPIRE', key, ARGV[5])
end
redis.call('LPUSH', KEYS[2], ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
