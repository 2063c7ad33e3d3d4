-- Releases the lease on an instance's name, and removes the records of its workers that hold no claims.
-- KEYS: the lease, the set of instances, the instance's set of workers, its wake list.
-- ARGV: the record that the lease must have, '' if there must be no lease; the instance.
-- Returns 1 if nothing is left of the instance, else 0.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[4])
-- Anybody may have put something else there.
redis.pcall('HDEL', 'conserver:paused:confirmed', ARGV[2])
for _, worker in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if redis.call('EXISTS', 'conserver:claims:' .. ARGV[2] .. ':' .. worker) == 0 then
    redis.call('SREM', KEYS[3], worker)
    redis.call('DEL', 'conserver:taken:' .. ARGV[2] .. ':' .. worker)
  end
end
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('SREM', KEYS[2], ARGV[2])
return 1
