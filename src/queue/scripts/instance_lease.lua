-- Takes the lease on an instance's name, or renews it.
-- KEYS: the lease, the set of instances.
-- ARGV: our record, the record of a holder that has ended or '', the time to live, the instance.
-- Returns the outcome and the record that was there: 'ours', 'taken' (over from the one that has ended), or 'held' by
-- somebody else.

local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
elseif not held or held == ARGV[2] then
  -- Nothing that takes memory comes first, so that the lease can be taken on a full server.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
else
  -- Anybody may have written it, of any length.
  return {'held', held:sub(1, 4096)}
end
redis.call('SADD', KEYS[2], ARGV[4])
if held and held ~= ARGV[1] then return {'taken', held} end
return {'ours', ''}
